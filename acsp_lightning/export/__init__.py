"""Networks as files for other programs, and the card that describes them."""

from acsp_lightning.export.formats import Exported, export_onnx, export_program, export_state_dict

__all__ = ["Exported", "export_onnx", "export_program", "export_state_dict"]
