"""A federation of fedexit on Flower. Give `client_app` a function of your own to read other clips."""

from fedexit.flower.app import server_app
from fedexit.flower.client import client_app

server = server_app()
client = client_app()
