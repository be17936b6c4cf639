"""The platform's client: what the CLI, the demo and the benchmark talk through.

Import from its modules: `http` the API as calls, `chat` and `invoke` requests, `deploy` and `push`
files, `local` a platform of one's own, `render`, `tables` and `progress` for terminals, `failure`
exit codes. Each command of the CLI pays for the imports of what it uses alone.
"""
