"""`python -m cp_agents` is `cp-agents`."""

from cp_agents.cli import main

main()
