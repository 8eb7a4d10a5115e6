#!/bin/sh
# Starts MLflow behind the gateway: it answers to the names listed here and to no other.
set -eu
case ${XRAY_OPT_HOST:-} in
    *[!A-Za-z0-9.-]*) echo "mlflow: XRAY_OPT_HOST must be one host name, not '$XRAY_OPT_HOST'" >&2; exit 78 ;;
esac
hosts=mlflow,mlflow:5000
for name in localhost 127.0.0.1 '[::1]' gateway ${XRAY_OPT_HOST:-}; do
    hosts=$hosts,$name,$name:5000,$name:$XRAY_OPT_MLFLOW_PORT
done
set -- --app-name basic-auth --host 0.0.0.0 --port 5000 --workers 1 --allowed-hosts "$hosts"
if [ -n "${XRAY_OPT_HOST:-}" ]; then
    set -- "$@" --cors-allowed-origins "https://$XRAY_OPT_HOST,https://$XRAY_OPT_HOST:$XRAY_OPT_MLFLOW_PORT"
fi
# Uploads pass through a folder of the volume: the root is read-only, and /tmp is memory.
export TMPDIR=/artifacts/.scratch
rm -rf "$TMPDIR"
mkdir -p "$TMPDIR"
exec mlflow server "$@" --backend-store-uri postgresql+psycopg://mlflow@postgres/mlflow \
    --serve-artifacts --artifacts-destination "$XRAY_OPT_ARTIFACTS"
