"""What visitors notice when one of three nodes fails: our gateway beside the article's nginx and HAProxy.

    python tests/bench/gateway.py [--seconds 30] [--fault NAME ...] [--tag 0.1.0]

Each of the four gateways has 50 requests a second, a fifth of them posts, and 30 WebSockets of its own visitors, all at
the same time before the same three nodes, so that each fault is the very same for all. A request has failed that has no
good answer after two seconds. The window reaches from the fault until the last request that failed was sent. Printed
are figures, no verdict. Builds an image with Debian's HAProxy.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# In the place of this folder, whose queue.py would hide Python's.
sys.path[:1] = [str(ROOT), *(str(ROOT / "images" / name) for name in ("services", "sdapi"))]

from tests.integration.fault_stage.contenders import Contender, Ours, article, haproxy, ours  # noqa: E402
from tests.integration.fault_stage.faults import BY_NAME, FAULTS, Fault  # noqa: E402
from tests.integration.fault_stage.figures import Figures, figures  # noqa: E402
from tests.integration.fault_stage.stage import Stage, three_nodes  # noqa: E402
from tests.integration.fault_stage.visitors import Visitors  # noqa: E402

WHOLE_SECONDS = 120
AFTER_SECONDS = 8


@contextlib.contextmanager
def contenders(stage: Stage, tag: str, folder: Path) -> Iterator[list[Contender]]:
    folder.chmod(0o755)
    with contextlib.ExitStack() as closing:
        yield [
            closing.enter_context(ours(stage, tag, folder / "ours")),
            closing.enter_context(article(stage, tag, folder / "article")),
            closing.enter_context(haproxy(stage, tag, folder / "haproxy-1s", "1s")),
            closing.enter_context(
                haproxy(stage, tag, folder / "haproxy-250ms", "250ms", "on-marked-down shutdown-sessions")
            ),
        ]


async def wait_until_whole(stage: Stage, gateways: Sequence[Contender]) -> None:
    end = time.monotonic() + WHOLE_SECONDS
    for gateway in gateways:
        while not await asyncio.to_thread(gateway.is_whole, stage):
            if time.monotonic() > end:
                sys.exit(f"{gateway.name} does not serve all nodes")
            await asyncio.sleep(1)


async def measure(stage: Stage, gateways: Sequence[Contender], fault: Fault, seconds: float) -> list[Figures]:
    for gateway in gateways:
        if isinstance(gateway, Ours):  # what an earlier fault has taught it must not count in this one
            await asyncio.to_thread(gateway.stop_controller)
            gateway.start_controller()
    await wait_until_whole(stage, gateways)
    node = stage.nodes[1]
    crowds = [Visitors(gateway.address, gateway.key) for gateway in gateways]
    for crowd in crowds:
        crowd.start()
    await asyncio.sleep(3)
    begin = time.monotonic()
    await asyncio.to_thread(fault.begin, stage, node)
    await asyncio.sleep(seconds)
    end = time.monotonic()
    await asyncio.to_thread(fault.end, stage, node)
    await asyncio.sleep(AFTER_SECONDS)
    diaries = [await crowd.stop() for crowd in crowds]
    posts = Counter(post for one in stage.nodes for post in one.posts())
    sick = {one.name for one in stage.nodes} if fault.hits == len(stage.nodes) else {node.name}
    return [figures(diary, sick, begin, end, posts) for diary in diaries]


def row(name: str, seen: Figures) -> str:
    back = " never" if seen.back is None else f"{seen.back:6.1f}"
    return (
        f"{name:<24}{seen.failed:7d}{seen.window:9.2f}{seen.elsewhere:11d}{seen.broken:9d}{seen.held:8.1f}{back}"
        f"{seen.twice:7d}"
    )


async def run(options: argparse.Namespace) -> None:
    wanted = [BY_NAME[name] for name in options.fault] if options.fault else list(FAULTS)
    with (
        three_nodes(options.tag) as stage,
        tempfile.TemporaryDirectory(prefix="animatediff-bench-") as folder,
        contenders(stage, options.tag, Path(folder)) as gateways,
    ):
        head = f"{'':24}{'failed':>7}{'window':>9}{'elsewhere':>11}{'broken':>9}{'held':>8}{'back':>6}{'twice':>7}"
        for fault in wanted:
            print(f"\n{fault.name}, {options.seconds:g} s\n{head}", flush=True)
            for gateway, seen in zip(gateways, await measure(stage, gateways, fault, options.seconds), strict=True):
                print(row(gateway.name, seen), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each fault lasts")
    parser.add_argument("--fault", action="append", choices=list(BY_NAME), help="only these")
    parser.add_argument("--tag", default="0.1.0", help="of the images")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
