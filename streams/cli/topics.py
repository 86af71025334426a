"""`streamrec topics create`: makes the topics of a deployment and says what differs from what is documented."""

from __future__ import annotations

import typer

from streams.cli.common import run_async, with_settings
from streams.settings import Settings

app = typer.Typer(no_args_is_help=True)
EXIT_FAULT = 1


@app.callback()
def topics() -> None:
    """The topics of a deployment."""


@app.command()
@with_settings("Kafka")
def create(settings: Settings) -> None:
    """Create the topics that are missing; leave the others as they are, and say how they differ.

    Running it again changes nothing. Exit code 1 when a topic that is there cannot work as it is.
    """
    from streams.kafka.admin import create_topics
    from streams.kafka.connection import KafkaConnection
    from streams.topics import TopicNames, topic_specs

    specs = topic_specs(
        TopicNames(settings.topic_prefix),
        partitions=settings.topic_partitions,
        replication_factor=settings.topic_replication_factor,
    )
    report = run_async(create_topics(KafkaConnection.from_settings(settings), specs))
    for spec in specs:
        what = "created" if spec.name in report.created else "exists"
        typer.echo(f"{what}  {spec.name}  key {spec.key}, partitions {report.partitions.get(spec.name, 0)}")
    for each in report.differences:
        level = "FAULT" if each.fault else "differs"
        typer.echo(f"{level}  {each.topic}  {each.what} is {each.found}, documented {each.wanted}")
    typer.echo(f"{len(report.created)} created, {len(report.existing)} there already")
    if not report.sound:
        raise typer.Exit(EXIT_FAULT)
