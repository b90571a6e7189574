"""The plugin of `scan_app.py`: it reads the text of a picture with a neural network."""

import os


class ReadText:
    def load(self, config):
        from rapidocr import RapidOCR

        engine = {
            "intra_op_num_threads": config.get("threads", 1),  # as many as a worker may use, not as many as there are
            "use_cuda": bool(os.environ.get("CUDA_VISIBLE_DEVICES")),  # the card of this worker, if it has one
        }
        named = {f"EngineConfig.onnxruntime.{name}": value for name, value in engine.items()}
        self.model = RapidOCR(params={"Global.log_level": "error", **named})

    def execute(self, png, ctx):
        ctx.progress(0, "looking for lines")
        picture = self.model.load_img(png)
        boxes = self.model(picture, use_det=True, use_cls=False, use_rec=False).boxes
        strips = [] if boxes is None else self.model.crop_text_regions(picture, boxes)
        for done, strip in enumerate(strips, start=1):
            read = self.model(strip, use_det=False, use_cls=True, use_rec=True)
            ctx.progress(done / len(strips), f"line {done} of {len(strips)}")
            if read.txts:
                yield read.txts[0], round(float(read.scores[0]), 3)

    def unload(self):
        self.model = None
