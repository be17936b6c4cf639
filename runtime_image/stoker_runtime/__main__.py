"""`python -m stoker_runtime`: one worker process."""

import sys

from stoker_runtime.worker import main

if __name__ == "__main__":
    main(sys.argv[1:])
