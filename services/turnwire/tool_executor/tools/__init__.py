"""The providers of the tool executor service. Adding one is a module and a line of this table."""

from __future__ import annotations

from turnwire.runtime.providers import ProviderTable

PROVIDERS = ProviderTable(
    "tool_executor",
    {
        "inline::code-interpreter": "turnwire.tool_executor.tools.code_interpreter:CodeInterpreterProvider",
        "remote::brave-search": "turnwire.tool_executor.tools.brave_search:BraveSearchProvider",
        "remote::bing-search": "turnwire.tool_executor.tools.bing_search:BingSearchProvider",
        "remote::tavily-search": "turnwire.tool_executor.tools.tavily_search:TavilySearchProvider",
        "remote::searxng": "turnwire.tool_executor.tools.searxng:SearxngProvider",
        "remote::wolfram-alpha": "turnwire.tool_executor.tools.wolfram_alpha:WolframAlphaProvider",
        "remote::openai-images": "turnwire.tool_executor.tools.openai_images:OpenAiImagesProvider",
    },
)
"""Provider type to `module:class`."""

problems = PROVIDERS.problems
