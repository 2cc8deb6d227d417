"""Airflow DAG: train every night, check what was published, score the day's rows with the version in production.

The gate is in the training: production moves to the new version only where it is not worse on the same held-back rows.
One that is worse stays in the store, and the old one goes on answering and scoring.

Airflow's workers need `autoencoder` on their path and see the store and the rows. For Airflow 3.
"""

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

MODEL = "payments"
ROWS = "/rows/payments.csv"
TODAY = "/rows/incoming/{{ ds }}.parquet"
SCORED = "/rows/scored/{{ ds }}.parquet"

with DAG(
    dag_id="autoencoder_nightly",
    description="Train, gate and score with the autoencoder service's command line",
    schedule="30 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 1, "retry_delay": timedelta(minutes=10)},
    tags=["autoencoder"],
) as dag:
    # Whatever happens in it, the store has no version more or a whole one more: it may be run again.
    train = BashOperator(
        task_id="train",
        bash_command=f"autoencoder train {ROWS} --model {MODEL} --promote auto",
        env={"AUTOENCODER_STORE": "/model_store"},
        append_env=True,
        execution_timeout=timedelta(hours=4),
    )
    verify = BashOperator(
        task_id="verify",
        bash_command=f"autoencoder models verify {MODEL}",
        env={"AUTOENCODER_STORE": "/model_store"},
        append_env=True,
    )
    # Goes on where an attempt was cut off; the output appears when it is complete.
    score = BashOperator(
        task_id="score",
        bash_command=f"autoencoder score {TODAY} {SCORED} --model {MODEL} --resume",
        env={"AUTOENCODER_STORE": "/model_store"},
        append_env=True,
        execution_timeout=timedelta(hours=2),
    )
    train >> verify >> score
