"""gRPC adapter of policy: parse, one use case, convert."""

from collections.abc import Iterable, Mapping
from typing import Any

from agentfactory.v1 import policy_pb2, policy_pb2_grpc

from control_plane.policy.bundles import Activated, BundleRecord, BundleRef
from control_plane.policy.caller import calling_subject
from control_plane.policy.convert import decision_to_proto, duration, timestamp
from control_plane.policy.library import PolicyLibrary
from control_plane.policy.review import Candidate, Case, PolicyReview, TimedAnswer
from shared.digests import Digest
from shared.errors import MalformedError
from shared.rpc.identity import caller

_RESULTS = {
    policy_pb2.DECISION_RESULT_UNSPECIFIED: None,
    policy_pb2.DECISION_RESULT_ALLOWED: True,
    policy_pb2.DECISION_RESULT_DENIED: False,
}


class PolicyServicer(policy_pb2_grpc.PolicyServiceServicer):
    """Serves `PolicyLibrary` and `PolicyReview`."""

    def __init__(self, library: PolicyLibrary, review: PolicyReview) -> None:
        self._library = library
        self._review = review

    async def PublishPolicyBundle(
        self, request: policy_pb2.PublishPolicyBundleRequest, _: Any
    ) -> policy_pb2.PublishPolicyBundleResponse:
        bundle = await self._library.publish(
            calling_subject(), request.envelope, files_of(request.files.files)
        )
        return policy_pb2.PublishPolicyBundleResponse(bundle=await self._shown(bundle))

    async def GetPolicyBundle(
        self, request: policy_pb2.GetPolicyBundleRequest, _: Any
    ) -> policy_pb2.GetPolicyBundleResponse:
        bundle = await self._library.get(calling_subject(), _ref_of(request.bundle))
        return policy_pb2.GetPolicyBundleResponse(
            bundle=await self._shown(bundle),
            files=[
                policy_pb2.PolicyFile(path=path, content=content) for path, content in bundle.files.items()
            ],
        )

    async def ListPolicyBundles(
        self, request: policy_pb2.ListPolicyBundlesRequest, _: Any
    ) -> policy_pb2.ListPolicyBundlesResponse:
        page = await self._library.list(
            calling_subject(), page_size=request.page.page_size, page_token=request.page.page_token
        )
        return policy_pb2.ListPolicyBundlesResponse(
            bundles=[await self._shown(bundle) for bundle in page.items],
            next_page_token=page.next_page_token,
        )

    async def ActivatePolicyBundle(
        self, request: policy_pb2.ActivatePolicyBundleRequest, _: Any
    ) -> policy_pb2.ActivatePolicyBundleResponse:
        activated = await self._library.activate(
            calling_subject(), _ref_of(request.bundle), expected=request.expected_digest
        )
        return policy_pb2.ActivatePolicyBundleResponse(activation=await self._activation(activated))

    async def RollbackPolicyBundle(
        self, request: policy_pb2.RollbackPolicyBundleRequest, _: Any
    ) -> policy_pb2.RollbackPolicyBundleResponse:
        activated = await self._library.rollback(calling_subject(), expected=request.expected_digest)
        return policy_pb2.RollbackPolicyBundleResponse(activation=await self._activation(activated))

    async def TestPolicyBundle(
        self, request: policy_pb2.TestPolicyBundleRequest, _: Any
    ) -> policy_pb2.TestPolicyBundleResponse:
        cases = [Case(question=case.question, input=case.input) for case in request.cases]
        tried = await self._review.test(calling_subject(), _candidate_of(request.candidate), cases)
        return policy_pb2.TestPolicyBundleResponse(
            passed=all(result.passed for result in tried.results),
            results=[
                policy_pb2.PolicyTestResult(name=result.name, passed=result.passed, message=result.message)
                for result in tried.results
            ],
            answers=[_answer_to_proto(answer) for answer in tried.answers],
        )

    async def ReplayDecisions(
        self, request: policy_pb2.ReplayDecisionsRequest, _: Any
    ) -> policy_pb2.ReplayDecisionsResponse:
        replayed = await self._review.replay(
            calling_subject(),
            _candidate_of(request.candidate),
            question=request.question,
            limit=request.limit,
        )
        return policy_pb2.ReplayDecisionsResponse(
            replayed=replayed.replayed,
            changed=[
                policy_pb2.ChangedDecision(
                    decision=decision_to_proto(decision, content=decision.input),
                    answer=_answer_to_proto(answer),
                )
                for decision, answer in replayed.changed
            ],
            truncated=replayed.truncated,
        )

    async def GetDecision(
        self, request: policy_pb2.GetDecisionRequest, _: Any
    ) -> policy_pb2.GetDecisionResponse:
        decision = await self._review.decision(caller().tenant_id, request.decision_id)
        return policy_pb2.GetDecisionResponse(decision=decision_to_proto(decision, content=decision.input))

    async def ListDecisions(
        self, request: policy_pb2.ListDecisionsRequest, _: Any
    ) -> policy_pb2.ListDecisionsResponse:
        page = await self._review.decisions(
            caller().tenant_id,
            question=request.question,
            allowed=_RESULTS[request.result],
            page_size=request.page.page_size,
            page_token=request.page.page_token,
        )
        return policy_pb2.ListDecisionsResponse(
            decisions=[decision_to_proto(decision, content=b"") for decision in page.items],
            next_page_token=page.next_page_token,
        )

    async def ReevaluateDecision(
        self, request: policy_pb2.ReevaluateDecisionRequest, _: Any
    ) -> policy_pb2.ReevaluateDecisionResponse:
        made = await self._review.reevaluate(caller().tenant_id, request.decision_id)
        return policy_pb2.ReevaluateDecisionResponse(
            decision=decision_to_proto(made.decision, content=made.decision.input),
            answer=_answer_to_proto(made.again),
            same=made.same,
        )

    async def _shown(self, bundle: BundleRecord) -> policy_pb2.PolicyBundle:
        return bundle_to_proto(bundle, in_force=await self._library.digest_in_force())

    async def _activation(self, activated: Activated) -> policy_pb2.PolicyActivation:
        activation = activated.activation
        return policy_pb2.PolicyActivation(
            number=activation.number,
            bundle=await self._shown(activated.bundle),
            previous_digest=activated.previous_digest,
            activated_by=activation.activated_by,
            activated_at=None if activation.activated_at is None else timestamp(activation.activated_at),
        )


def files_of(files: Iterable[policy_pb2.PolicyFile]) -> Mapping[str, bytes]:
    """Return contents by path.

    Raises:
        MalformedError: A path comes twice.
    """
    found: dict[str, bytes] = {}
    for file in files:
        if file.path in found:
            raise MalformedError(f"policy file {file.path!r} comes twice")
        found[file.path] = file.content
    return found


def bundle_to_proto(bundle: BundleRecord, *, in_force: Digest) -> policy_pb2.PolicyBundle:
    """Return a bundle without its files."""
    return policy_pb2.PolicyBundle(
        digest=bundle.digest,
        name=bundle.name,
        version=bundle.version,
        comment=bundle.comment,
        key_id=bundle.key_id,
        active=bundle.digest == in_force,
        published_by=bundle.published_by,
        published_at=timestamp(bundle.published_at),
        envelope=bundle.envelope,
    )


def _ref_of(ref: policy_pb2.PolicyBundleRef) -> BundleRef:
    return BundleRef(digest=ref.digest, version=ref.version)


def _candidate_of(candidate: policy_pb2.PolicyCandidate) -> Candidate:
    if candidate.WhichOneof("source") == "bundle":
        return Candidate(ref=_ref_of(candidate.bundle))
    return Candidate(files=files_of(candidate.files.files))


def _answer_to_proto(timed: TimedAnswer) -> policy_pb2.PolicyAnswer:
    answer = timed.answer
    return policy_pb2.PolicyAnswer(
        allowed=answer.allowed,
        reason=answer.reason,
        reasons=answer.reasons,
        duration=duration(timed.took),
    )
