"""optuna-dashboard for gunicorn, on connections that are looked at before they are used: a database may restart."""

from optuna.storages import RDBStorage
from optuna_dashboard import wsgi

application = wsgi(
    RDBStorage(
        "postgresql+psycopg://optuna@postgres/optuna", engine_kwargs={"pool_pre_ping": True}, skip_table_creation=True
    )
)
