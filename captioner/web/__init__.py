"""The service over HTTP: FastAPI, our own routes and those that existing clients know, and the page.

Needs the extra `captioner[web]`; nothing else imports this room. `app.py` puts it together, `context.py` is what a
module of routes is handed.
"""
