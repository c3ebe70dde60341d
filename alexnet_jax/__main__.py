"""python -m alexnet_jax COMMAND"""

from alexnet_jax.cli import main

main()
