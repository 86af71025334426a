#!/usr/bin/env bash
# One Apache Kafka broker (KRaft, broker and controller in one process) on 127.0.0.1, in the foreground. For tests and for trying
# things by hand, not for production: one replica, a small heap, small segments.
#
#   deploy/kafka/start.sh DATA_DIR PORT [CONTROLLER_PORT] [SASL_PORT]
#
# CONTROLLER_PORT is PORT+1 unless given. With SASL_PORT a second listener asks for SASL/PLAIN (user and password:
# KAFKA_SASL_USER, KAFKA_SASL_PASSWORD; "streamrec" and "streamrec-secret" unless set). `start.sh --fetch` only brings the jars.
# The jars come by Maven, once, into STREAMREC_KAFKA_HOME (~/.cache/streamrec/kafka-4.1.1); two at once do no harm.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
home="${STREAMREC_KAFKA_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/streamrec/kafka-4.1.1}"

fetch_jars() {
    [ -f "$home/complete" ] && return
    mkdir -p "$(dirname "$home")"
    local fetched="$home.$$"
    trap 'rm -rf "$fetched"' EXIT
    echo "fetching the Kafka jars into $home" >&2
    mvn -q -B -f "$here/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
        -DoutputDirectory="$fetched" -DincludeScope=runtime >&2
    # Whoever comes second finds a whole folder: jars are never seen half copied. (Should both rename at the same instant,
    # the second copy lands inside the first one, where the class path does not look.)
    touch "$fetched/complete"
    if [ -f "$home/complete" ]; then rm -rf "$fetched"; else rm -rf "$home" && mv "$fetched" "$home"; fi
    trap - EXIT
}

fetch_jars
if [ "${1:-}" = "--fetch" ]; then exit 0; fi
if [ $# -lt 2 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi

mkdir -p "$1"
data="$(cd "$1" && pwd)"
port="$2"
controller_port="${3:-$((port + 1))}"
sasl_port="${4:-}"
# The class path is a wildcard: a listing of 60 jars would hide everything else in `ps`.
java_options=(-cp "$home/*" -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto -Djava.awt.headless=true
    -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -Dorg.slf4j.simpleLogger.showDateTime=true
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS" -Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info)

listeners="PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller_port"
advertised="PLAINTEXT://127.0.0.1:$port"
if [ -n "$sasl_port" ]; then
    listeners="$listeners,SASL_PLAINTEXT://127.0.0.1:$sasl_port"
    advertised="$advertised,SASL_PLAINTEXT://127.0.0.1:$sasl_port"
fi

cat >"$data/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller_port
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT
listeners=$listeners
advertised.listeners=$advertised
log.dirs=$data/log
# Topics are never made by surprise.
auto.create.topics.enable=false
delete.topic.enable=true
# A group of one worker has its first event at once instead of after 3 s; tests may ask for short sessions.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
# One broker: one replica of everything, and few internal partitions, since each costs files at the start.
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
offsets.topic.segment.bytes=1048576
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=2
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
log.segment.bytes=67108864
log.index.size.max.bytes=1048576
# The default of 128 MiB does not fit beside everything else in a 256 MiB heap.
log.cleaner.dedupe.buffer.size=8388608
num.network.threads=2
num.io.threads=4
background.threads=2
# A broker that was killed is let in again when its old session is over: the default of 9 s is a long wait for a crash test.
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
PROPERTIES
if [ -n "$sasl_port" ]; then
    user="${KAFKA_SASL_USER:-streamrec}"
    password="${KAFKA_SASL_PASSWORD:-streamrec-secret}"
    cat >>"$data/server.properties" <<PROPERTIES
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \\
  username="$user" password="$password" user_$user="$password";
PROPERTIES
fi
chmod 600 "$data/server.properties"

if [ ! -f "$data/log/meta.properties" ]; then
    # A cluster id is 16 bytes in base64url; a fixed one is as good as any for a broker that is alone.
    java -Xmx96m "${java_options[@]}" kafka.tools.StorageTool format \
        --cluster-id c3RyZWFtcmVjLWxvY2FsMQ --config "$data/server.properties" >&2
fi
exec java -Xms64m -Xmx256m "${java_options[@]}" kafka.Kafka "$data/server.properties"
