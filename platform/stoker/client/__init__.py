"""The platform's client: what the CLI, the demo and the benchmark talk through."""

from stoker.client.chat import Turn, chat, request_body
from stoker.client.deploy import Deployment, deploy
from stoker.client.failure import ExitCode, exit_code, next_step
from stoker.client.http import Deployed, Platform, Reply, Upload
from stoker.client.local import LocalPlatform, local_platform
from stoker.client.push import push
from stoker.client.render import waterfall
from stoker.client.terminal import Terminal

__all__ = [
    "Deployed",
    "Deployment",
    "ExitCode",
    "LocalPlatform",
    "Platform",
    "Reply",
    "Terminal",
    "Turn",
    "Upload",
    "chat",
    "deploy",
    "exit_code",
    "local_platform",
    "next_step",
    "push",
    "request_body",
    "waterfall",
]
