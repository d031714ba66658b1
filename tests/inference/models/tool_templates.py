"""Small chat templates in the manner of the families whose calls we read; none is anybody's."""

TAGGED = (
    "{%- if tools %}<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n' }}{% endif %}"
    "<tools>\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools>\n"
    'Call with <tool_call>{"name": <name>, "arguments": <object>}</tool_call><|im_end|>\n{% endif %}'
    "{%- for message in messages %}"
    "{%- if message.role == 'tool' %}<|im_start|>user\n<tool_response>{{ message.content }}</tool_response><|im_end|>\n"
    "{%- elif message.role != 'system' or not tools %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{%- for call in message.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{%- endfor %}<|im_end|>\n{% endif %}"
    "{%- endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BARE = (
    "{%- if tools is not defined %}{% set tools = none %}{% endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'tool' %}<|im_start|>ipython\n{{ message.content | tojson }}<|im_end|>\n"
    "{%- elif message.tool_calls %}{% if message.tool_calls | length > 1 %}{{ raise_exception('One call only.') }}"
    "{% endif %}{% set call = message.tool_calls[0].function %}<|im_start|>assistant\n"
    '{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|im_end|>\n'
    "{%- else %}<|im_start|>{{ message.role }}\n"
    "{%- if tools is not none and loop.first %}"
    'Answer as {"name": <name>, "parameters": <object>}.\n'
    "{%- for tool in tools %}{{ tool | tojson(indent=4) }}\n{% endfor %}{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endif %}"
    "{%- endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LISTED = (
    "{{ bos_token }}{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}"
    "{%- if tools is not none and message == asked[-1] %}[AVAILABLE_TOOLS] [{% for tool in tools %}"
    '{"type": "function", "function": {% raw %}{{% endraw %}'
    "{% for key, value in tool.function.items() if key != 'return' %}"
    '"{{ key }}": {{ value | tojson }}{% if not loop.last %}, {% endif %}{% endfor %}{% raw %}}}{% endraw %}'
    "{% if not loop.last %}, {% endif %}{% endfor %}][/AVAILABLE_TOOLS]{% endif %}"
    "[INST] {{ message['content'] }}[/INST]"
    "{%- elif message['tool_calls'] is defined %}[TOOL_CALLS] ["
    "{% for call in message['tool_calls'] %}{% if call.id | length != 9 %}{{ raise_exception('Nine, please.') }}"
    "{% endif %}{{ call.function | tojson }}{% if not loop.last %}, {% endif %}{% endfor %}]{{ eos_token }}"
    "{%- elif message['role'] == 'tool' %}[TOOL_RESULTS] "
    '{"content": {{ message.content | tojson }}, "call_id": "{{ message.tool_call_id }}"}[/TOOL_RESULTS]'
    "{%- else %}{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
WITHOUT = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
