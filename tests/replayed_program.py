"""What another process replays the runs of ``test_replay_command`` with."""

import test_replay_command

test_replay_command.texts[:] = ["a"]
