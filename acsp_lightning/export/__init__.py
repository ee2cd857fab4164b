"""Export of networks to other formats, and their model card."""

from acsp_lightning.export.formats import Exported, export_onnx, export_program, export_state_dict

__all__ = ["Exported", "export_onnx", "export_program", "export_state_dict"]
