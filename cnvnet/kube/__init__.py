"""The Kubernetes API: what this suite asks of it, and the way there.

`resources` and `api` say what is asked, and import nothing that costs time. `client` asks a real server.
"""
