#!/bin/bash
# restore.sh STAMP         put a backup back: databases and artifacts as they were, what is there now is replaced
# restore.sh STAMP check   only look whether it is there and whole
#
# Nothing may use the databases meanwhile: `xray-opt restore` stops it first. All is unpacked beside what is there
# before the first thing is replaced, so a damaged backup or a full disk changes nothing.
set -euo pipefail
export PGHOST=postgres PGUSER=postgres PGPASSWORD=$POSTGRES_PASSWORD
from=/backups/${1:-}
[[ ${1:-} =~ ^2[0-9]{7}T[0-9]{6}Z$ && -d $from ]] || {
    echo "restore: no backup ${1:-''}; there are: $(cd /backups && find . -maxdepth 1 -name '2*Z' -printf '%f ' | xargs -r)" >&2
    exit 2
}
(cd "$from" && sha256sum --check --quiet SHA256SUMS) || { echo "restore: $1 is damaged; nothing was changed" >&2; exit 1; }
[ "${2:-}" != check ] || exit 0

# What was unpacked beside is taken away again where it did not all fit.
undo() {
    rm -rf /artifacts/.restored /s3/.restored
    for database in optuna mlflow; do
        psql -qX -d postgres -c "DROP DATABASE IF EXISTS ${database}_restored WITH (FORCE)" || true
    done
}
trap undo EXIT
for database in optuna mlflow; do
    psql -qX -v ON_ERROR_STOP=1 -d postgres <<SQL
SELECT 'CREATE ROLE $database' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '$database') \gexec
DROP DATABASE IF EXISTS ${database}_restored WITH (FORCE);
CREATE DATABASE ${database}_restored OWNER $database TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C';
SQL
    pg_restore --exit-on-error --no-owner --role="$database" -d "${database}_restored" "$from/$database.dump"
done
for folder in artifacts s3; do
    rm -rf "/$folder/.restored"
    mkdir "/$folder/.restored"
    tar -C "/$folder/.restored" -xf "$from/$folder.tar"
done
trap - EXIT

for database in optuna mlflow; do
    psql -qX -v ON_ERROR_STOP=1 -d postgres <<SQL
DROP DATABASE IF EXISTS $database WITH (FORCE);
ALTER DATABASE ${database}_restored RENAME TO $database;
SQL
done
for folder in artifacts s3; do
    find "/$folder" -mindepth 1 -maxdepth 1 ! -name .restored -exec rm -rf {} +
    find "/$folder/.restored" -mindepth 1 -maxdepth 1 -exec mv -t "/$folder" {} +
    rmdir "/$folder/.restored"
done
echo "restore: $1 is back"
