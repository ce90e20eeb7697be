"""The experiment file: what can be asked, how it is read, what is refused before work begins."""
