#!/bin/sh
# Writes nginx's settings for this host's names and certificate, checks them, and starts it.
set -eu
. /opt/tls.sh
require_tls gateway
case ${XRAY_OPT_HOST:-} in
    *[!A-Za-z0-9.-]*) refuse gateway "XRAY_OPT_HOST must be one host name, not '$XRAY_OPT_HOST'" ;;
esac
if [ "$tls" = yes ]; then ssl=ssl; else ssl=; fi
sed -e "s/@SSL@/$ssl/" -e "s/@HOST@/${XRAY_OPT_HOST:-}/" -e "/@TLS_ONLY@/$([ "$tls" = yes ] && echo 's/@TLS_ONLY@//' || echo d)" \
    /opt/gateway/nginx.conf >/tmp/nginx.conf
nginx -q -t -c /tmp/nginx.conf || refuse gateway "nginx does not take these settings, most likely the certificate or its key"
exec nginx -c /tmp/nginx.conf
