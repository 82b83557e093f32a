"""The command line ``outplan``. ``app`` declares the commands; a module does the work of each."""
