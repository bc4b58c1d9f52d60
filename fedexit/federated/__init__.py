"""Run the paper's federation. Start with `rounds.federate`, then `clients.local_round`, then `aggregation.aggregate`.

rounds       the round loop: sample clients, train them, aggregate, evaluate
clients      one client and its local round; `objectives` holds its loss
aggregation  Eq. (1), the rules that it is compared with, and rules of your own
server       FedAdam's step, and servers of your own
methods      all compared methods by name; `fedra` and `local_heads` are parts of two of them
partition    clips divided among clients
workers      the clients of a round on several processes
ledger, checks   the costs of each local round; checks before the first round
"""
