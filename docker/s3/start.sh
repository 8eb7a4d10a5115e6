#!/bin/sh
# A bucket is a folder: made where it is missing, left alone where it is not.
set -eu
case $XRAY_OPT_S3_BUCKET in
    '' | *[!a-z0-9.-]*) echo "s3: XRAY_OPT_S3_BUCKET must be lower-case letters, digits, dots and hyphens" >&2; exit 78 ;;
esac
mkdir -p "/s3/$XRAY_OPT_S3_BUCKET"
# Not by the command line, which every process of the machine may read.
export RCLONE_AUTH_KEY="\"$AWS_ACCESS_KEY_ID,$AWS_SECRET_ACCESS_KEY\"" RCLONE_CONFIG=/dev/null
exec rclone serve s3 --addr :9000 --vfs-cache-mode off /s3
