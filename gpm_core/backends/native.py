"""placeholder"""
def why_not(op, device_type, dtype):
    return "not built"
