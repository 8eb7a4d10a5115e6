# Sourced by gateway and postgres: sets `tls` to yes or no, and refuses to open the service without a certificate.
#   XRAY_OPT_BIND   the address that the ports are published on
#   /run/tls/cert.pem, /run/tls/key.pem   the certificate and its key; /dev/null where there is none
refuse() {
    echo "$1: $2" >&2
    exit 78
}

require_tls() {
    tls=no
    if [ -s /run/tls/cert.pem ] && [ -s /run/tls/key.pem ]; then
        for file in cert key; do
            [ -r "/run/tls/$file.pem" ] || refuse "$1" "the TLS $file cannot be read by this container's user $(id -u): \
put both files into a folder of mode 0700 and give them mode 0644 (docs/service.md)"
        done
        tls=yes
    fi
    case ${XRAY_OPT_BIND:-127.0.0.1} in
        127.*.*.* | localhost | ::1 | '[::1]') ;;
        *) [ "$tls" = yes ] || refuse "$1" "XRAY_OPT_BIND=$XRAY_OPT_BIND opens this service to the network: \
that needs TLS, so set XRAY_OPT_TLS_CERT and XRAY_OPT_TLS_KEY, or leave XRAY_OPT_BIND unset" ;;
    esac
}
