"""`agentfactory policy …`: write, test and sign policy; publish bundles and put them in force."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import output
from cli.output import Json
from cli.policy_decisions import decision, decisions, reevaluate
from cli.policy_export import export
from cli.policy_reference import candidate_of, reference
from cli.settings import CliSettings, DataDir, Target, read_settings
from shared.errors import AlreadyExistsError
from shared.paths import InstallationPaths

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from agentfactory.v1 import policy_pb2

    from cli.client import Client
    from control_plane.policy.trial import TrialResult

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Policy as code: test, sign, publish, put in force."
)
app.command()(export)
app.command()(decisions)
app.command()(decision)
app.command()(reevaluate)

Folder = Annotated[Path, typer.Argument(help="Folder of .rego files and data.json.")]
Bundle = Annotated[str, typer.Argument(help="VERSION or sha256:… of a published bundle.")]

DATA_JSON = '{\n  "operator": {\n    "allowed_http": [],\n    "allowed_llm": []\n  }\n}\n'
TEST_REGO = """\
# Run by 'agentfactory policy test' and before every activation: each rule test_… has to be true.
package agentfactory_test

import rego.v1

import data.agentfactory

caller := {"identity": "spiffe://local/caller/a", "tenant_id": "default", "roles": ["caller"]}

asked := {
\t"question": "execute",
\t"subject": caller,
\t"capabilities": {"http": []},
\t"limits": {},
\t"input_bytes": 1,
}

test_a_caller_may_execute if agentfactory.execute.allowed with input as asked

test_a_stranger_may_not_execute if {
\tstranger := object.union(asked, {"subject": {"roles": []}})
\tnot agentfactory.execute.allowed with input as stranger
}
"""


@app.command()
def init(folder: Folder, as_json: Json = False) -> None:
    """Make a folder with the policy that the control plane comes with, to be changed.

    Example: agentfactory policy init policy
    """
    from control_plane.policy.builtin import builtin_policy

    if folder.exists():
        raise AlreadyExistsError(f"{folder} exists", hint="choose another name, or remove the folder")
    texts = {**builtin_policy().files, "data.json": DATA_JSON, "builtin_test.rego": TEST_REGO}
    folder.mkdir(parents=True)
    for path, text in texts.items():
        (folder / path).write_text(text, encoding="utf-8")
    if output.wants_json():
        output.data({"folder": str(folder), "files": sorted(texts)})
        return
    output.note(f"made {folder}; change it, then: agentfactory policy test {folder}")


@app.command()
def check(folder: Folder, as_json: Json = False) -> None:
    """Check bounds, syntax and what the embedded engine has, offline.

    Example: agentfactory policy check policy
    """
    from shared.policy_folder import read_folder

    files = read_folder(folder)
    asyncio.run(_loaded(files))
    if output.wants_json():
        output.data({"valid": True, "files": sorted(files)})
        return
    output.note(f"{len(files)} files of {folder} are a policy")


@app.command("test")
def run_tests(
    folder: Folder,
    remote: Annotated[
        bool, typer.Option("--remote", help="By the control plane and the engine that it uses.")
    ] = False,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Run the policy's own tests and the probes of every question; exit code 1 when one fails.

    Example: agentfactory policy test policy
    """
    from agentfactory.v1 import policy_pb2

    from cli.client import Client, call
    from shared.policy_folder import read_folder

    files = read_folder(folder)
    if remote:

        async def use(client: Client) -> policy_pb2.TestPolicyBundleResponse:
            request = policy_pb2.TestPolicyBundleRequest(candidate=candidate_of(files))
            return await client.policy.TestPolicyBundle(request, timeout=client.timeout)

        tried = call(read_settings(data_dir, target), use)
    else:
        tried = _as_message(asyncio.run(_tried(files)))
    if output.wants_json():
        output.message(tried)
    else:
        output.table(
            ("result", "test", "message"),
            [("passed" if each.passed else "failed", each.name, each.message) for each in tried.results],
            empty="there is nothing to run",
        )
    if not tried.passed:
        raise typer.Exit(output.NOT_SUCCEEDED)


def _as_message(results: "Sequence[TrialResult]") -> "policy_pb2.TestPolicyBundleResponse":
    from agentfactory.v1 import policy_pb2

    return policy_pb2.TestPolicyBundleResponse(
        passed=all(result.passed for result in results),
        results=[
            policy_pb2.PolicyTestResult(name=result.name, passed=result.passed, message=result.message)
            for result in results
        ],
    )


async def _loaded(files: "Mapping[str, bytes]") -> None:
    from control_plane.policy.embedded import EmbeddedPolicyEngines
    from control_plane.policy.trial import load_all

    await load_all(EmbeddedPolicyEngines(), files)


async def _tried(files: "Mapping[str, bytes]") -> "Sequence[TrialResult]":
    from control_plane.policy.embedded import EmbeddedPolicyEngines
    from control_plane.policy.trial import load_rules, try_bundle
    from shared.digests import sha256_digest

    engines = EmbeddedPolicyEngines()
    return await try_bundle(engines, files, await load_rules(engines, files, sha256_digest(b"")))


@app.command()
def sign(
    folder: Folder,
    version: Annotated[int, typer.Option("--version", min=1, help="Above every published one.")],
    name: Annotated[str, typer.Option("--name", help="[a-z][a-z0-9-]*")] = "policy",
    comment: Annotated[str, typer.Option("--comment", help="One line for people.")] = "",
    key: Annotated[Path | None, typer.Option("--key", help="Private policy key (PEM, 0600).")] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Sign a folder as a bundle: writes policy.dsse beside its files. Works offline.

    Example: agentfactory policy sign policy --version 1 --comment "no http at all"
    """
    from shared.key_files import read_private_key
    from shared.policy_bundle import make_policy, sign_policy
    from shared.policy_folder import read_folder, write_envelope
    from shared.signatures import FileSigner

    made = make_policy(name=name, version=version, comment=comment, files=read_folder(folder))
    private = read_private_key(key or InstallationPaths(data_dir=read_settings(data_dir).data_dir).policy_key)
    envelope = asyncio.run(sign_policy(made, [FileSigner(key=private)]))
    path = write_envelope(folder, envelope)
    if output.wants_json():
        output.data({"envelope": str(path), "digest": made.digest, "policy_key_id": private.key_id})
        return
    output.note(f"signed {name} {version} by {private.key_id}")
    print(made.digest)


@app.command()
def publish(folder: Folder, data_dir: DataDir = None, target: Target = None, as_json: Json = False) -> None:
    """Send a signed folder to the control plane; what is in force stays.

    Example: agentfactory policy publish policy
    """
    from agentfactory.v1 import policy_pb2

    from cli.client import Client, call
    from shared.policy_folder import read_envelope, read_folder

    files, envelope = read_folder(folder), read_envelope(folder)

    async def use(client: Client) -> policy_pb2.PolicyBundle:
        request = policy_pb2.PublishPolicyBundleRequest(envelope=envelope, files=candidate_of(files).files)
        return (await client.policy.PublishPolicyBundle(request, timeout=client.timeout)).bundle

    bundle = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(bundle)
        return
    output.note(f"published {bundle.name} {bundle.version}; in force with: policy activate {bundle.version}")
    print(bundle.digest)


@app.command()
def activate(
    bundle: Bundle,
    expected: Annotated[
        str, typer.Option("--expected", help="Digest of what is in force; absent: whatever is now.")
    ] = "",
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Put a published bundle in force, once its tests and the probes pass.

    Example: agentfactory policy activate 1
    """
    from agentfactory.v1 import policy_pb2

    from cli.client import Client

    async def use(client: Client) -> policy_pb2.PolicyActivation:
        request = policy_pb2.ActivatePolicyBundleRequest(
            bundle=reference(bundle), expected_digest=expected or await _in_force(client)
        )
        return (await client.policy.ActivatePolicyBundle(request, timeout=client.timeout)).activation

    _show_activation(read_settings(data_dir, target), use)


@app.command()
def rollback(
    expected: Annotated[
        str, typer.Option("--expected", help="Digest of what is in force; absent: whatever is now.")
    ] = "",
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Put the bundle in force that was so before the current one.

    Example: agentfactory policy rollback
    """
    from agentfactory.v1 import policy_pb2

    from cli.client import Client

    async def use(client: Client) -> policy_pb2.PolicyActivation:
        request = policy_pb2.RollbackPolicyBundleRequest(expected_digest=expected or await _in_force(client))
        return (await client.policy.RollbackPolicyBundle(request, timeout=client.timeout)).activation

    _show_activation(read_settings(data_dir, target), use)


async def _in_force(client: "Client") -> str:
    from agentfactory.v1 import policy_pb2

    request = policy_pb2.GetPolicyBundleRequest()
    answer = await client.policy.GetPolicyBundle(request, timeout=client.timeout)
    return answer.bundle.digest


def _show_activation(
    settings: CliSettings, use: "Callable[[Client], Awaitable[policy_pb2.PolicyActivation]]"
) -> None:
    from cli.client import call

    activation = call(settings, use)
    if output.wants_json():
        output.message(activation)
        return
    bundle = activation.bundle
    output.note(f"in force is {bundle.name} {bundle.version}; before it {activation.previous_digest}")
    print(bundle.digest)


@app.command("list")
def list_bundles(
    limit: Annotated[int, typer.Option("--limit", min=1, max=500)] = 50,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """List published bundles, highest version first.

    Example: agentfactory policy list
    """
    from agentfactory.v1 import common_pb2, policy_pb2

    from cli.client import Client, call

    async def use(client: Client) -> policy_pb2.ListPolicyBundlesResponse:
        request = policy_pb2.ListPolicyBundlesRequest(page=common_pb2.PageRequest(page_size=limit))
        return await client.policy.ListPolicyBundles(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    output.table(
        ("version", "name", "in force", "digest", "published", "comment"),
        [
            (
                str(each.version),
                each.name,
                "yes" if each.active else "no",
                each.digest,
                output.time(each.published_at),
                each.comment,
            )
            for each in answer.bundles
        ],
        empty="no policy is published yet",
    )


@app.command()
def show(
    bundle: Annotated[str, typer.Argument(help="VERSION or sha256:…; absent: what is in force.")] = "",
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Show a bundle and its files.

    Example: agentfactory policy show
    """
    from agentfactory.v1 import policy_pb2

    from cli.client import Client, call

    async def use(client: Client) -> policy_pb2.GetPolicyBundleResponse:
        request = policy_pb2.GetPolicyBundleRequest(bundle=reference(bundle) if bundle else None)
        return await client.policy.GetPolicyBundle(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    found = answer.bundle
    output.fields(
        [
            ("name", f"{found.name} {found.version}"),
            ("digest", found.digest),
            ("in force", "yes" if found.active else "no"),
            ("key", found.key_id),
            ("published", f"{output.time(found.published_at)} by {found.published_by}"),
            ("comment", found.comment),
        ]
    )
    for file in answer.files:
        print(f"\n--- {file.path}\n{file.content.decode()}")


@app.command()
def diff(
    candidate: Annotated[str, typer.Argument(help="Folder, VERSION or sha256:… of a bundle.")],
    question: Annotated[str, typer.Option("--question", help="Only this question.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Newest decisions.")] = 200,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Show which recent decisions would change under another policy; changes nothing.

    Example: agentfactory policy diff policy --limit 500
    """
    from agentfactory.v1 import policy_pb2

    from cli.client import Client, call
    from shared.policy_folder import read_folder

    tried = (
        candidate_of(read_folder(Path(candidate)))
        if Path(candidate).is_dir()
        else policy_pb2.PolicyCandidate(bundle=reference(candidate))
    )

    async def use(client: Client) -> policy_pb2.ReplayDecisionsResponse:
        request = policy_pb2.ReplayDecisionsRequest(candidate=tried, question=question, limit=limit)
        return await client.policy.ReplayDecisions(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    cut = ", then the time ran out" if answer.truncated else ""
    output.note(f"{len(answer.changed)} of {answer.replayed} decisions would change{cut}")
    output.table(
        ("decision", "question", "was", "would be"),
        [
            (each.decision.decision_id, each.decision.question, each.decision.reason, each.answer.reason)
            for each in answer.changed
        ],
        empty="no decision would change",
    )
