"""The simulated model for MLServer, which imports it in an interpreter of its own."""

import asyncio

from mlserver import MLModel
from mlserver.types import InferenceResponse, ResponseOutput

from benchmarks.w15_model import PAUSE, Model


class Batch(MLModel):
    "The same code with and without batches: MLServer joins the inputs of several requests into one."

    async def load(self):
        self.model = Model()
        return True

    async def answer(self, numbers):
        return self.model(numbers)

    async def predict(self, payload):
        found = await self.answer(list(payload.inputs[0].data))
        output = ResponseOutput(name="number", shape=[len(found), 1], datatype="INT64", data=found)
        return InferenceResponse(model_name=self.name, outputs=[output])


class Single(Batch):
    pass


class Async(Batch):
    async def answer(self, numbers):
        await asyncio.sleep(PAUSE)
        return [2 * number for number in numbers]
