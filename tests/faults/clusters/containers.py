"""Run the nodes of a RabbitMQ cluster as Docker containers on the host's network.

There they keep their addresses across restarts and listen on 127.0.0.1 only, as the child
processes do.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from secrets import token_hex

from testcontainers.core.container import DockerContainer

from outplan.testing.servers.containers import (
    Container,
    new_container,
    rabbitmqctl,
    require_docker,
    without_ryuk,
)
from outplan.testing.servers.processes import enabled_plugins, network_environment, rabbitmq_conf
from outplan.testing.servers.supervisor import run_on_death
from tests.faults.clusters.nodes import CLUSTER_CONF, ERLANG, NODES, Ports, RabbitNode

_SETTINGS = "/etc/rabbitmq"


@contextmanager
def rabbit_containers(ports: Ports, image: str, conf: str) -> Iterator[tuple[RabbitNode, ...]]:
    """Prepare the nodes, and run the epmd that they need in a container of its own.

    ``conf`` is added to each node's rabbitmq.conf. The containers are removed when the block or
    this process ends. Raises `ServersUnavailable`.
    """
    require_docker()
    session, cookie = token_hex(4), token_hex(16)
    names = [f"outplan-{name}-{session}" for name in ("epmd", "rabbit1", "rabbit2", "rabbit3")]
    with ExitStack() as stack:
        stack.enter_context(run_on_death("docker", "rm", "--force", "--volumes", *names))
        containers = [new_container(image, name) for name in names]
        for container in containers:
            stack.enter_context(closing(container.get_docker_client().client))
            container.with_kwargs(network_mode="host")
        stack.enter_context(without_ryuk())
        containers[0].with_command(["epmd", "-address", "127.0.0.1", "-port", str(ports.names)])
        Container(containers[0]).launch()
        yield tuple(
            _node(container, name, ports.amqp[n], ports.distribution[n], ports.names, cookie, conf)
            for n, (container, name) in enumerate(zip(containers[1:], NODES, strict=True))
        )


def _node(
    container: DockerContainer,
    name: str,
    amqp: int,
    distribution: int,
    names: int,
    cookie: str,
    conf: str,
) -> RabbitNode:
    settings = network_environment(distribution, names) | {
        "RABBITMQ_NODENAME": name,
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ERLANG,
        "RABBITMQ_ERLANG_COOKIE": cookie,
    }
    for variable, value in settings.items():
        container.with_env(variable, value)
    for file, text in {
        "rabbitmq.conf": rabbitmq_conf(amqp) + CLUSTER_CONF + conf,
        "enabled_plugins": enabled_plugins(management=False),
    }.items():
        container.with_copy_into_container(text.encode(), f"{_SETTINGS}/{file}")

    shutdown = ["rabbitmqctl", "-n", name, "stop"]
    ctl = rabbitmqctl(container, "-n", name)
    return RabbitNode(name, amqp, Container(container, shutdown), ctl)
