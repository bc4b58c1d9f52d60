"""Run the same federation on Flower (extra `flower`): the server sends each node its layers, the nodes train.

fleet    the fleet file: clients, depths and public keys; needs no extra
plan     predicts depth, memory, time and bytes of each device; needs no extra
wire     a round's job and its reply as Flower messages
server   sends jobs, checks replies, and runs `federate` over them; the ServerApp
client   the local round of one node; the ClientApp
local    starts and ends a whole fleet on one machine: `fedexit fleet up` and `fedexit fleet down`
"""
