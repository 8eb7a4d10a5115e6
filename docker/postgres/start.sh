#!/bin/bash
# Starts the server; over TLS, and over nothing else, where there is a certificate.
set -euo pipefail
. /opt/tls.sh
require_tls postgres
arguments=(-c hba_file=/opt/postgres/hba-plain.conf -c password_encryption=scram-sha-256 -c max_connections=200)
if [ "$tls" = yes ]; then
    # The server takes a key that only its own user may read.
    install -m 600 /run/tls/key.pem /tmp/key.pem
    arguments=(-c hba_file=/opt/postgres/hba-tls.conf "${arguments[@]:2}"
        -c ssl=on -c ssl_cert_file=/run/tls/cert.pem -c ssl_key_file=/tmp/key.pem -c ssl_min_protocol_version=TLSv1.2)
fi
exec docker-entrypoint.sh postgres "${arguments[@]}"
