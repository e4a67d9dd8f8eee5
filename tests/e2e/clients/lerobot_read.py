"""Reads a data set with the stock LeRobot and prints what it saw: python lerobot_read.py FOLDER ROW..."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "lerobot_stub"))
os.environ["HF_HUB_OFFLINE"] = "1"

from lerobot.datasets.lerobot_dataset import LeRobotDataset


def main() -> None:
    folder, ids = sys.argv[1], [int(i) for i in sys.argv[2:]]
    data = LeRobotDataset("atoll/data", root=folder, video_backend="pyav")
    rows = []
    for i in ids:
        row = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in data[i].items()}
        rows.append(row)
    ahead = LeRobotDataset("atoll/data", root=folder, video_backend="pyav", delta_timestamps={"action": [0, 0.05, 0.1]})
    stats = {name: {kind: value.tolist() for kind, value in told.items()} for name, told in data.meta.stats.items()}
    told = {"frames": len(data), "episodes": data.num_episodes, "fps": data.fps, "rows": rows, "stats": stats}
    print(json.dumps(told | {"ahead": ahead[ids[0]]["action"].tolist()}))


main()
