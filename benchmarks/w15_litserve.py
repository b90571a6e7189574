"""The simulated model for LitServe; its worker processes import this module."""

import asyncio

import litserve

from benchmarks.w15_model import MOST, PAUSE, WAIT, Model


class Single(litserve.LitAPI):
    def setup(self, device):
        self.model = Model()

    def decode_request(self, request):
        return request["number"]

    def predict(self, number):
        return self.model([number])[0]

    def encode_response(self, output):
        return output


class Batch(Single):
    def batch(self, inputs):
        return inputs

    def predict(self, numbers):
        return self.model(numbers)

    def unbatch(self, output):
        return output


class Async(Single):
    async def decode_request(self, request):
        return request["number"]

    async def predict(self, number):
        await asyncio.sleep(PAUSE)
        return 2 * number

    async def encode_response(self, output):
        return output


def serve(kind, port):
    if kind == "batch":
        api = Batch(max_batch_size=MOST, batch_timeout=WAIT)
    else:
        api = Single() if kind == "single" else Async(enable_async=True)
    # The fast queue is LitServe's setting for many requests.
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1, fast_queue=True)
    server.run(
        port=port, host="127.0.0.1", generate_client_file=False, log_level="critical", access_log=False,
        pretty_logs=False,
    )  # fmt: skip
