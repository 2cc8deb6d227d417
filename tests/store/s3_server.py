"""``python -m tests.store.s3_server``: an S3 service on a free port; its URL is the first line printed.

moto's, in one thread: it looks at a condition and writes in two steps, which S3 does in one.
"""

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


def main() -> None:
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=False)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
