"""Read and change the state of a RabbitMQ cluster by evaluating Erlang terms on a node."""

import json
from dataclasses import dataclass
from typing import Any

from outplan.testing.servers import RabbitServer

# Each term prints JSON, and works on RabbitMQ 3.10 (Mnesia), 4.0 and 4.3 (Khepri).
_STATUS = """
Members = fun(Q) ->
    {resource, VHost, queue, Name} = amqqueue:get_name(Q),
    {Name, [maps:from_list(Member) || Member <- rabbit_quorum_queue:status(VHost, Name)]}
end,
Queues = [Members(Q) || Q <- rabbit_amqqueue:list_by_type(rabbit_quorum_queue)],
ClusterStatus = [{nodes, rabbit_nodes:all_running()}, {queues, maps:from_list(Queues)}],
io:format(<<"~ts">>, [rabbit_json:encode(maps:from_list(ClusterStatus))]).
"""
_MEMBERS = """
{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"QUEUE">>)),
{Name, _} = amqqueue:get_pid(Q),
Running = rabbit_nodes:all_running(),
{ok, Members, {Name, Leader}} = ra:members([{Name, Node} || Node <- Running], 5000),
"""
_LEADER = f"""{_MEMBERS}
io:format(<<"~ts">>, [rabbit_json:encode(Leader)]).
"""
_MOVE = f"""{_MEMBERS}
[Next | _] = [Node || {{_, Node}} <- Members, Node =/= Leader, lists:member(Node, Running)],
ok = ra:transfer_leadership({{Name, Leader}}, {{Name, Next}}),
io:format(<<"~ts">>, [rabbit_json:encode(Next)]).
"""
_PERSIST = """
[dets:sync(Table) || Table <- dets:all()],
io:format("null").
"""

# Shorter than rabbitmqctl's own timeout for a paused node.
_TIMEOUT = ("--timeout", "15")


@dataclass(frozen=True)
class ClusterStatus:
    """The running nodes, and each quorum queue's members with their state."""

    nodes: frozenset[str]
    queues: dict[str, list[dict[str, Any]]]

    def commit_indexes(self) -> dict[str, int]:
        """Map each queue to its leader's commit index, or -1 without a leader."""
        return {
            name: max(
                (_commit_index(member) for member in members if member["Raft State"] == "leader"),
                default=-1,
            )
            for name, members in self.queues.items()
        }

    def behind(self, goal: dict[str, int]) -> list[str]:
        """Return the queues without a leader or with a member below the goal."""
        leaders = self.commit_indexes()
        return [
            name
            for name, members in self.queues.items()
            if leaders[name] < 0
            or any(_commit_index(member) < goal.get(name, 0) for member in members)
        ]


def _commit_index(member: dict[str, Any]) -> int:
    """Return a member's commit index, or -1 if the member does not answer."""
    index = member["Commit Index"]
    return index if isinstance(index, int) else -1


def read_status(node: RabbitServer) -> ClusterStatus:
    answer = _evaluate(node, _STATUS)
    return ClusterStatus(frozenset(answer["nodes"]), answer["queues"])


def find_leader(node: RabbitServer, queue: str) -> str:
    """Return the name of the node that leads the queue; the virtual host is /."""
    return str(_evaluate(node, _LEADER.replace("QUEUE", queue)))


def transfer_leadership(node: RabbitServer, queue: str) -> str:
    """Have the queue's leader hand over to another node; return that node's name."""
    return str(_evaluate(node, _MOVE.replace("QUEUE", queue)))


def persist_queues(node: RabbitServer) -> None:
    """Have the node write its queue definitions to disk, which it does lazily."""
    _evaluate(node, _PERSIST)


def _evaluate(node: RabbitServer, term: str) -> Any:
    # rabbitmqctl prints the term's value after its output.
    return json.JSONDecoder().raw_decode(node.ctl("eval", *_TIMEOUT, term).lstrip())[0]
