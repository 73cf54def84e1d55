"""gRPC adapter of agents: parse, one use case, convert."""

from typing import Any

from agentfactory.v1 import agents_pb2, agents_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from control_plane.agents.domain import Agent, Candidate
from control_plane.agents.rollouts import RolloutService
from control_plane.agents.service import AgentService, AgentUpdate
from control_plane.policy.caller import calling_subject
from control_plane.templates.convert import ref_from_proto
from shared.rpc.identity import caller


class AgentServicer(agents_pb2_grpc.AgentServiceServicer):
    """Serves `AgentService`."""

    def __init__(self, service: AgentService, rollouts: RolloutService) -> None:
        self._service = service
        self._rollouts = rollouts

    async def CreateAgent(
        self, request: agents_pb2.CreateAgentRequest, _: Any
    ) -> agents_pb2.CreateAgentResponse:
        agent = await self._service.create(
            calling_subject(),
            name=request.name,
            template=ref_from_proto(request.template),
            parameters=request.parameters,
        )
        return agents_pb2.CreateAgentResponse(agent=agent_to_proto(agent))

    async def GetAgent(self, request: agents_pb2.GetAgentRequest, _: Any) -> agents_pb2.GetAgentResponse:
        agent = await self._service.get(caller().tenant_id, request.name)
        return agents_pb2.GetAgentResponse(agent=agent_to_proto(agent))

    async def ListAgents(
        self, request: agents_pb2.ListAgentsRequest, _: Any
    ) -> agents_pb2.ListAgentsResponse:
        page = await self._service.list(
            caller().tenant_id, page_size=request.page.page_size, page_token=request.page.page_token
        )
        return agents_pb2.ListAgentsResponse(
            agents=[agent_to_proto(agent) for agent in page.agents], next_page_token=page.next_page_token
        )

    async def UpdateAgent(
        self, request: agents_pb2.UpdateAgentRequest, _: Any
    ) -> agents_pb2.UpdateAgentResponse:
        change = AgentUpdate(
            name=request.name,
            revision=request.revision,
            template=ref_from_proto(request.template) if request.HasField("template") else None,
            parameters=request.parameters or None,
        )
        agent = await self._service.update(calling_subject(), change)
        return agents_pb2.UpdateAgentResponse(agent=agent_to_proto(agent))

    async def DeleteAgent(
        self, request: agents_pb2.DeleteAgentRequest, _: Any
    ) -> agents_pb2.DeleteAgentResponse:
        await self._service.delete(calling_subject(), request.name)
        return agents_pb2.DeleteAgentResponse()

    async def RolloutAgent(
        self, request: agents_pb2.RolloutAgentRequest, _: Any
    ) -> agents_pb2.RolloutAgentResponse:
        agent = await self._rollouts.roll_out(
            calling_subject(),
            request.name,
            version=request.version,
            percent=request.percent,
            parameters=request.parameters,
        )
        return agents_pb2.RolloutAgentResponse(agent=agent_to_proto(agent))

    async def RollbackAgent(
        self, request: agents_pb2.RollbackAgentRequest, _: Any
    ) -> agents_pb2.RollbackAgentResponse:
        agent = await self._rollouts.roll_back(calling_subject(), request.name, reason=request.reason)
        return agents_pb2.RollbackAgentResponse(agent=agent_to_proto(agent))

    async def CompareAgentVersions(
        self, request: agents_pb2.CompareAgentVersionsRequest, _: Any
    ) -> agents_pb2.CompareAgentVersionsResponse:
        compared = await self._rollouts.compare(caller().tenant_id, request.name)
        return agents_pb2.CompareAgentVersionsResponse(
            versions=[
                agents_pb2.VersionOutcomes(
                    template_version=one.version, template_digest=one.digest, executions=one.executions
                )
                for one in compared
            ]
        )


def agent_to_proto(agent: Agent) -> agents_pb2.Agent:
    """Return the message of an agent."""
    created_at, updated_at = Timestamp(), Timestamp()
    created_at.FromDatetime(agent.created_at)
    updated_at.FromDatetime(agent.updated_at)
    return agents_pb2.Agent(
        agent_id=agent.agent_id,
        name=agent.name,
        template_name=agent.template_name,
        template_version=agent.template_version,
        template_digest=agent.template_digest,
        parameters=agent.parameters,
        revision=agent.revision,
        created_at=created_at,
        updated_at=updated_at,
        channel=agent.channel,
        rollout=_rollout(agent.candidate) if agent.candidate is not None else None,
        previous_template_version=agent.previous.version if agent.previous is not None else "",
    )


def _rollout(candidate: Candidate) -> agents_pb2.Rollout:
    return agents_pb2.Rollout(
        template_version=candidate.to.version,
        template_digest=candidate.to.digest,
        parameters=candidate.to.parameters,
        percent=candidate.percent,
    )
