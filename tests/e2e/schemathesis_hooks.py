"""Checks of our own beside schemathesis' (test_gateway_schema.py loads this file into its process)."""

import schemathesis


@schemathesis.check
def documented_is_accepted(ctx, response, case):
    """What OpenAPI allows passes the gateway; only a service behind it may refuse what it means.

    The order of a form's parts is more than a schema can say.
    """
    refused = response.status_code == 400 and "violations" in response.json()
    form = case.media_type == "multipart/form-data"
    if case.meta is not None and case.meta.generation.mode.is_positive and refused and not form:
        raise AssertionError(f"refused as not documented: {response.json()}")
