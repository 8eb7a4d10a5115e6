#!/bin/sh
# Runs xray-opt with the addresses that hold on the host: 127.0.0.1 (and XRAY_OPT_HOST) lead to gateway and database.
# A study knows its storage by its address, so all workers must call it by the same one.
set -eu
socat "TCP-LISTEN:$XRAY_OPT_MLFLOW_PORT,bind=127.0.0.1,fork,reuseaddr" TCP:gateway:5000 &
socat "TCP-LISTEN:$XRAY_OPT_POSTGRES_PORT,bind=127.0.0.1,fork,reuseaddr" TCP:postgres:5432 &
if [ -s /run/tls/ca.pem ]; then export MLFLOW_TRACKING_SERVER_CERT_PATH=/run/tls/ca.pem; fi
export TMPDIR=/workspace/tmp XRAY_OPT_HOME=/workspace XRAY_OPT_CACHE=/workspace/weights
mkdir -p "$TMPDIR"
exec python3 -m xray_opt "$@"
