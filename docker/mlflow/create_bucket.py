"""Create a bucket, once the store answers; do nothing where it exists."""

import os
import sys
import time

import botocore.session
from botocore.exceptions import BotoCoreError, ClientError

SECONDS = 120


def main(bucket: str) -> None:
    """Try until the store answers, for two minutes."""
    address = os.environ["MLFLOW_S3_ENDPOINT_URL"]
    client = botocore.session.get_session().create_client("s3", endpoint_url=address, region_name="us-east-1")
    until = time.monotonic() + SECONDS
    while True:
        try:
            client.create_bucket(Bucket=bucket)
        except ClientError as error:
            if error.response["Error"]["Code"] in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                return
            cause: Exception = error
        except BotoCoreError as error:
            cause = error
        else:
            return
        if time.monotonic() > until:
            sys.exit(f"bucket {bucket} was not created within {SECONDS} s: {cause}")
        time.sleep(2)


if __name__ == "__main__":
    main(sys.argv[1])
