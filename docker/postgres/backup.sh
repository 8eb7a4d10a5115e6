#!/bin/bash
# backup.sh once      dump both databases, copy the artifacts, forget all but the newest XRAY_OPT_BACKUP_KEEP backups
# backup.sh nightly   that, every day at XRAY_OPT_BACKUP_HOUR (UTC); at once where the last backup is older than a day
#
# A backup is a folder named by its time below /backups; it appears whole or not at all. Databases go before artifacts:
# what is logged meanwhile is too much in it, never missing.
set -euo pipefail
export PGHOST=postgres PGUSER=postgres PGPASSWORD=$POSTGRES_PASSWORD
keep=${XRAY_OPT_BACKUP_KEEP:-7} hour=${XRAY_OPT_BACKUP_HOUR:-2}
[[ $keep =~ ^[1-9][0-9]*$ ]] || { echo "backup: XRAY_OPT_BACKUP_KEEP must be a number of at least 1, not '$keep'" >&2; exit 78; }
[[ $hour =~ ^([0-9]|1[0-9]|2[0-3])$ ]] || { echo "backup: XRAY_OPT_BACKUP_HOUR must be 0 to 23, not '$hour'" >&2; exit 78; }

revision() { # DATABASE TABLE
    [ -z "$(psql -qAtX -d "$1" -c "SELECT to_regclass('public.$2')")" ] || psql -qAtX -d "$1" -c "SELECT version_num FROM $2"
}

copy() { # FOLDER FILE: tar ends with 1 where a file changed under it, which a run that goes on may do
    tar -C "$1" --exclude=./.scratch -cf "$2" . || [ $? = 1 ]
}

once() {
    local stamp part
    exec 9>/backups/.lock
    flock 9
    rm -rf /backups/.part-*
    stamp=$(date -u +%Y%m%dT%H%M%SZ) part=/backups/.part-$stamp
    mkdir -m 700 "$part"
    for database in optuna mlflow; do
        pg_dump -Fc -d "$database" -f "$part/$database.dump"
    done
    copy /artifacts "$part/artifacts.tar"
    copy /s3 "$part/s3.tar"
    printf 'mlflow=%s\nauth=%s\noptuna=%s\n' "$(revision mlflow alembic_version)" \
        "$(revision mlflow alembic_version_auth)" "$(revision optuna alembic_version)" >"$part/schemas"
    (cd "$part" && sha256sum -- * >SHA256SUMS)
    sync
    mv -T "$part" "/backups/$stamp"
    echo "backup: $stamp ($(du -sh "/backups/$stamp" | cut -f1))"
    case $XRAY_OPT_ARTIFACTS in
        /artifacts | s3://"$XRAY_OPT_S3_BUCKET"*) ;;
        *) echo "backup: the artifacts in $XRAY_OPT_ARTIFACTS are not in it: they are kept by that store" ;;
    esac
    find /backups -mindepth 1 -maxdepth 1 -name '2*Z' | sort -r | tail -n "+$((keep + 1))" | xargs -r rm -rf
    exec 9>&-
}

pause() { # SECONDS: interruptible, unlike a sleep that bash waits for
    sleep "$1" &
    wait $!
}

nightly() {
    trap 'exit 0' TERM INT
    while true; do
        if [ -z "$(find /backups -mindepth 1 -maxdepth 1 -name '2*Z' -mmin -1440)" ]; then
            bash "$0" once || { echo "backup: failed; tried again in 10 minutes" >&2; pause 600; continue; }
        fi
        now=$(date -u +%s) next=$(date -u -d "today $hour:00" +%s)
        [ "$next" -gt "$now" ] || next=$((next + 86400))
        pause $((next - now))
        bash "$0" once || echo "backup: failed; tried again soon" >&2
    done
}

case ${1:-nightly} in
    once) once ;;
    nightly) nightly ;;
    *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
