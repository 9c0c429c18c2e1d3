"""Follow one cell through the guide's sentence, on a running server."""

import argparse
from pathlib import Path

from cellstream import BlockingClient

SENTENCE = "ANTONY.\nFriends, Romans, countrymen, lend me your ears;\n"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--layer", type=int, default=1, help="from 1")
parser.add_argument("--unit", type=int, default=0, help="from 0")
parser.add_argument("--target", default="localhost:50051")
chosen = parser.parse_args()
before = Path(__file__).with_name("passage.txt").read_text(encoding="utf-8").split(SENTENCE)[0]

with BlockingClient(chosen.target) as client, client.session(model="shakespeare-lstm") as session:
    session.predict(before, want="none")
    reply = session.predict(SENTENCE, want="every_step", gates=True, states=True)

numbers = {**reply.gates, **reply.states}
names = ("forget", "input", "candidate", "output", "cell", "hidden")
print("read ", *(f"{name:>9}" for name in names))
for step, character in enumerate(SENTENCE):
    values = (numbers[name][step, chosen.layer - 1, chosen.unit] for name in names)
    print(f"{character!r:5}", *(f"{value:9.2f}" for value in values))
