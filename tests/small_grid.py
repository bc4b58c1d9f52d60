"""A Flower grid inside one process: messages are packed and unpacked as on the wire, and every one is kept."""

from types import SimpleNamespace

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity


class SmallGrid:
    """Answer each message at once with the ClientApp of its node.

    clients: names in the order of partitions; spoil: changes a reply, spoil(round, client, reply) -> reply or None.
    """

    def __init__(self, app: ClientApp, clients: list[str], spoil=None, keys=None):
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # Flower's own processes set them
        self.app, self.clients, self.spoil, self.keys = app, clients, spoil, keys
        self.jobs: list[tuple[str, RecordDict]] = []  # what each client got
        self.sent: list[tuple[str, RecordDict]] = []  # what each client sent
        self.replies: dict[str, Message] = {}

    def get_nodes(self):
        return [
            SimpleNamespace(node_id=100 + place, public_key=self.keys[name] if self.keys else b"\0" * 32)
            for place, name in enumerate(self.clients)
        ]

    def push_messages(self, messages):
        for message in messages:
            meta, place = message.metadata.__dict__, message.metadata.dst_node_id - 100
            meta["_message_id"] = f"m{len(self.jobs)}-{message.metadata.message_type}-{place}"
            meta["_src_node_id"] = 1
            config = {"partition-id": place, "num-partitions": len(self.clients)}
            reply = self.app(message, Context(1, message.metadata.dst_node_id, config, RecordDict(), {}))
            if message.metadata.message_type == "train":
                self.jobs.append((self.clients[place], message.content))
                self.sent.append((self.clients[place], reply.content))
                if self.spoil:
                    reply = self.spoil(int(message.metadata.group_id), self.clients[place], reply)
            if reply is not None:
                self.replies[message.metadata.message_id] = reply
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids):
        return [self.replies.pop(one) for one in message_ids if one in self.replies]
