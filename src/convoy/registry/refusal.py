"""Put into words why a store did not do what was asked, and what to do about it."""

import os
import re
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException

from convoy.core.errors import without_credentials
from convoy.tracking import settings, store

NO_ACCOUNT = re.compile(r"401 Client Error|\(401\)")
NO_PERMISSION = re.compile(r"403 Client Error|\(403\)|AccessDenied|Permission denied|readonly database")
"""How artifact stores and databases say it, whose errors have no code of MLflow's."""

LOG_IN = "An account is named by MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or by MLFLOW_TRACKING_TOKEN."


def phrase(error: Exception, doing: str, uri: str, model: str) -> str:
    """Tell a lack of permission from a refusal, and both from a store that does not answer.

    Args:
        error: what the store, or the library that asks it, raised.
        doing: what was asked, as in `may not …`.
        uri: address of the store; a password in it is not shown.
        model: name of the registered model.
    """
    said, address, who = store.explain(error), without_credentials(uri), account(uri)
    code = error.error_code if isinstance(error, MlflowException) else ""
    if code == "UNAUTHENTICATED" or NO_ACCOUNT.search(said):
        return f"{address} does not let {who} in, so it could not be asked to {doing}; it answered: {said}\n{LOG_IN}"
    if code == "PERMISSION_DENIED" or NO_PERMISSION.search(said):
        if uri.startswith(settings.SQLITE):
            return (
                f"this user may not {doing} in {address}: {said}\n"
                "Let whoever owns the file give you the right to write it and its folder."
            )
        return (
            f"{who} may not {doing} at {address}; it answered: {said}\n"
            f"Ask whoever runs the server for the permission EDIT on the registered model `{model}` and on the "
            f"experiments of this project, or use another account. {LOG_IN}"
        )
    if isinstance(error, MlflowException) and store.refused(error):
        return f"{address} refused to {doing}: {said}"
    return (
        f"{address} did not answer when asked to {doing}: {said}\n"
        "Start its server, or let MLFLOW_TRACKING_URI name the store that has the models; then try again."
    )


def account(uri: str) -> str:
    """Name who asks a store, in words."""
    if name := os.environ.get("MLFLOW_TRACKING_USERNAME") or urlsplit(uri).username:
        return f"the account `{name}`"
    if os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return "the account of MLFLOW_TRACKING_TOKEN"
    return "somebody without an account (MLFLOW_TRACKING_USERNAME is not set)"
