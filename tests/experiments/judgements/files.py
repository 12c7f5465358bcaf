"""Files of made-up judgements."""

import json


def json_lines(records: list[dict]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)
