"""What a RabbitMQ node knows of its cluster: terms of Erlang for it, and what they answer."""

import json
from dataclasses import dataclass
from typing import Any

from outplan.testing.servers import RabbitServer

# Each term prints JSON. They keep to what RabbitMQ 3.10 and 4.0 both have.
_SURVEY = """
Members = fun(Q) ->
    {resource, VHost, queue, Name} = amqqueue:get_name(Q),
    {Name, [maps:from_list(Member) || Member <- rabbit_quorum_queue:status(VHost, Name)]}
end,
Queues = [Members(Q) || Q <- rabbit_amqqueue:list_by_type(rabbit_quorum_queue)],
Survey = [{nodes, rabbit_mnesia:cluster_nodes(running)}, {queues, maps:from_list(Queues)}],
io:format(<<"~ts">>, [rabbit_json:encode(maps:from_list(Survey))]).
"""
_MEMBERS = """
{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"QUEUE">>)),
{Name, _} = amqqueue:get_pid(Q),
Running = rabbit_mnesia:cluster_nodes(running),
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
_WRITE_DOWN = """
[dets:sync(Table) || Table <- dets:all()],
io:format("null").
"""

# Below the time that rabbitmqctl takes to find out that a node is paused.
_TIMEOUT = ("--timeout", "15")


@dataclass(frozen=True)
class Survey:
    """The nodes that run, and of each quorum queue its members with what they have."""

    nodes: frozenset[str]
    queues: dict[str, list[dict[str, Any]]]

    def committed(self) -> dict[str, int]:
        """Tell how far each queue's leader has come; -1 where there is none."""
        return {
            name: max((_index(it) for it in members if it["Raft State"] == "leader"), default=-1)
            for name, members in self.queues.items()
        }

    def behind(self, goal: dict[str, int]) -> list[str]:
        """Name the queues with no leader, or with a member that has not come as far."""
        leads = self.committed()
        return [
            name
            for name, members in self.queues.items()
            if leads[name] < 0 or any(_index(it) < goal.get(name, 0) for it in members)
        ]


def _index(member: dict[str, Any]) -> int:
    """Return how far the member has come; one that does not answer says no number."""
    index = member["Commit Index"]
    return index if isinstance(index, int) else -1


def survey(node: RabbitServer) -> Survey:
    answer = _evaluate(node, _SURVEY)
    return Survey(frozenset(answer["nodes"]), answer["queues"])


def leader(node: RabbitServer, queue: str) -> str:
    """Ask for the name of the node that leads the queue, of the virtual host /."""
    return str(_evaluate(node, _LEADER.replace("QUEUE", queue)))


def hand_on(node: RabbitServer, queue: str) -> str:
    """Have the queue's leader hand its role on to another node; return that node's name."""
    return str(_evaluate(node, _MOVE.replace("QUEUE", queue)))


def write_down(node: RabbitServer) -> None:
    """Have the node write to disk which queues it has, which it does lazily."""
    _evaluate(node, _WRITE_DOWN)


def _evaluate(node: RabbitServer, term: str) -> Any:
    # What the term returns is printed behind what it prints.
    return json.JSONDecoder().raw_decode(node.ctl("eval", *_TIMEOUT, term).lstrip())[0]
