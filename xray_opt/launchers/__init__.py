"""Who runs a study's trials, and where: each launcher in a file of its own, all behind ``workers.Launcher``.

``workers.in_process`` is the launcher of one worker, ``processes`` that of one process a slot; ``choose`` picks one by
what the command line says. Nothing is imported here: a slot must listen before it loads what is heavy.
"""
