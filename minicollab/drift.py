"""Tells a user's turn from an assistant's, and one that makes things up, by rule.

A chat model that plays the user falls back into the part it was trained for: it offers help, does the
task itself, or says the assistant's lines again. The rules are made not to take an ordinary user's
turn for one of these; a turn that slips through is for the judge to find (`simulator_check`). Such
a model also makes up wishes when it is asked for more than it has in mind.
"""

from __future__ import annotations

import re

from minicollab.schema import Conversation, Task

_ASSISTANT = re.compile(
    r"""
      how \s (can|may|could) \s I \s (help|assist|support) \s you
    | what \s (can|may|else\ can) \s I \s do \s for \s you | I \s? (am|'m) \s here \s to \s (help|assist)
    | I \s? (would|'d) \s be \s (very\s)? (happy|glad) \s to \s
        (help|assist|answer|provide|write|explain|share)
    | I \s? (can|can'?t|cannot|will|'ll|am\sunable\sto|'m\sunable\sto) \s (help|assist)
        \s (you|with \s (that|this|any|your))
    | as \s an \s (AI|artificial|language \s model) | I \s? (am|'m) \s an \s AI
    | let \s me \s know \s if | (I \s)? hope \s (this|that|it) \s helps
    | feel \s free \s to \s (ask|reach|let|provide|share|tell|contact)
    | I \s? (can|could|will|'ll|would|'d) \s (\w+\s)? (give|explain|show|write|make|get|do|send|arrange) \s
        ([^,.;!?]+\s)? (for|to) \s you \b | I \s can \s (also\s)? give \s you \s the \s (words|text|lines)
    | ^ (sure|certainly|absolutely|of \s course|great|yes|okay|ok) [,!.]? \s
        (here \s? ('s|is|are) | let \s me \s (help|explain|show|write|know)) \b
    | ^ here \s? ('s|is|are) \s (a|an|some|your|how|what|one|two|three|few|\d+) \b
    | ^ no \s (worries|problem) [,!.] \s I \s? ('ll|will|can)
    | what \s (would \s you \s like|do \s you \s want) (\s to \s (say|know|do|learn|write|make))? \?? $
    | would \s you \s like \s (any|more|some|help|to \s know)
    | (would|do) \s you \s (like|want|need) \s me \s to \s (help|write|make|explain)
    | (could|can) \s you \s (please\s)? (tell \s me \s more \s about|provide|specify|clarify) \s
        ([^?]* \s)? (your|you) \b
    | (can|may|shall) \s I \s (tell|give|show|offer|get) \s you \s (a|an|the|some|more) \b
    | ^ (what|which|where|how) \b [^?]* \b are \s you \s (visiting|looking \s for|planning|trying|hoping)
    | \b what \s? ('s|is|are) \s your \s (name|age|goal|budget|favou?rite|question|role|job|background|hobby)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_ADVICE = re.compile(
    r"^(for [\w ]+, |yes, |well, |then )?"
    r"(you (can|could|may|might|should) (also |always )?(add your own|ask (him|her|them)|call it|get a|go to"
    r"|look for|reach|stand|start|take a|try|visit)|(start|begin) (with|by) (a|an|some|the)\b)",
    re.IGNORECASE,
)
_WORK = re.compile(
    r"""
      ``` | \*\* [^*]+ \*\* | ^ \#+ \s | ^ \s* (1 [.)] | [-*\u2022]) \s+ \S | \b 1 [.)] \s .+ \b 2 [.)] \s
    | \[ [^\]\d]* \b (your|name|address|recipient|insert|company|date) \b [^\]]* \]
    | ^ (subject: | dear \s \S+) | ^ ["\u201c] \W* (\w+ \W+){12} | \b def \s \w+ \(
    """,
    re.IGNORECASE | re.VERBOSE,
)
_LONG = 60  # words; the longest turn of a user who only says what they want is shorter
_NEW = 3  # words: a turn without any fact ("hmm, that's too stiff") seldom has as many
_ECHO, _OWN = 0.6, 0.5  # shares of trigrams: of the assistant's message, of what the user knows


def assistant_like(text: str, task: Task, talk: Conversation) -> bool:
    """Whether a user's turn, said after `talk`, reads like the assistant's.

    It does if it says what assistants say: an offer of help, advice, a question for what the user
    wants; if it is the work that was asked for: a list, code, a letter, more than 60 words; or if it
    repeats the assistant's last message (`overlap` of 0.6). Work and repetitions are the user's own
    where they come from the task or from what the user said before.
    """
    text = text.replace("\u2019", "'").strip()
    own = [task.opening, *task.details, *(m.content for m in talk if m.role == "user")]
    if _ASSISTANT.search(text) or _ADVICE.search(text):
        return True
    if (_WORK.search(text) or len(words(text)) > _LONG) and overlap(text, own) < _OWN:
        return True
    replies = [m.content for m in talk if m.role == "assistant"]
    return overlap(text, replies[-1:], own) >= _ECHO


def invents(text: str, task: Task, talk: Conversation) -> bool:
    """Whether a user's turn, said after `talk`, makes things up: three or more of its words that carry
    meaning, and half of them, stand neither in the task nor in the conversation."""
    known = " ".join([task.opening, *task.details, *(m.content for m in talk)])
    meant = {word[:5] for word in words(text) if word not in _LITTLE | _SMALL_TALK}
    new = meant - {word[:5] for word in words(known)}
    return len(new) >= _NEW and 2 * len(new) >= len(meant)


def words(text: str) -> list[str]:
    """In lower case, without punctuation."""
    return re.findall(r"\w+(?:'\w+)?", text.lower().replace("\u2019", "'"))


def ngrams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    """All runs of `n` tokens, in order; none where there are fewer."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def overlap(text: str, sources: list[str], known: list[str] | None = None) -> float:
    """|T & S| / |T|, T the trigrams of words of `text` that are in none of `known`, S those of
    `sources`. 0 where T has fewer than three: a few words in common are no repetition."""
    own = {gram for source in known or () for gram in ngrams(words(source), 3)}
    grams = set(ngrams(words(text), 3)) - own
    said = {gram for source in sources for gram in ngrams(words(source), 3)}
    return len(grams & said) / len(grams) if len(grams) > 2 else 0.0


_LITTLE = frozenset(
    words(
        """a an and any are as at be been but by can could do does did for from had has have he her his how i
        if in into is it its just me my no not of on one only or our she should so some that the their them
        there they this to too up us want was we were what when where which who will with would you your"""
    )
)

_SMALL_TALK = frozenset(
    words(
        """about after again all also always am anything because before best better bit can't come couldn't
        didn't doesn't don't else even ever exactly excited explain find fine first fit fits get give go
        good great he's hear hello help hey hi hmm hope i'd i'll i'm i've idea interesting isn't it's kind
        know last less let's like little look looking lot love make makes maybe more much my myself need
        never new next nice nothing now oh ok okay other please quite really right say see she's someone
        something sorry sort sound sounds speak start still stop suggestion suggestions sure talk tell
        thank thanks that's then there's they're thing things think try two um understand use very want
        wasn't way we'd we'll we're well what's won't work worry would wouldn't write wrong yes yet you're"""
    )
)


def tells(text: str, detail: str) -> bool:
    """Whether half of the words of a detail that carry meaning are in `text`. Words are compared by
    their first five letters, so that "retires" is told by "retired"."""
    meant = {word[:5] for word in words(detail) if word not in _LITTLE}
    return bool(meant) and 2 * len(meant & {word[:5] for word in words(text)}) >= len(meant)
