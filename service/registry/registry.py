"""What can be asked at one moment: classifiers by name, their revisions, and which of them answers whom."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

from service.domain import Classifier
from service.errors import ClassifierWithheldError, UnknownClassifierError, UnknownRevisionError

Value = TypeVar("Value")

NEIGHBOURS = 3
"""How many serving classifiers a new revision is proven beside."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """The further revisions of a classifier, and who answers.

    `candidates`: loaded beside the folder's own revision; `shares`: percent of the conversations by revision, sums to
    100; `shadows`: revisions that are asked too and never answer.
    """

    candidates: tuple[Classifier, ...] = ()
    shares: Mapping[str, int] = field(default_factory=dict)
    shadows: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Registry:
    """What can be asked at one moment; never changed, only replaced.

    `classifiers`: by name, sorted, as their folders have them; `failures`: why some did not pass their gate, by name;
    `deployments`: of those classifiers that have more than their folder's revision.
    """

    classifiers: Mapping[str, Classifier]
    failures: Mapping[str, str] = field(default_factory=dict)
    deployments: Mapping[str, Deployment] = field(default_factory=dict)

    @property
    def withheld(self) -> dict[str, str]:
        """Why a classifier is not asked, for each that is not. One whose own revision has no traffic answers anyway."""
        flaws = {name: each.flaw for name, each in self.classifiers.items() if each.flaw is not None}
        return {name: why for name, why in {**self.failures, **flaws}.items() if self._answers_itself(name)}

    def _answers_itself(self, name: str) -> bool:
        return name not in self.classifiers or self.shares(name).get(self.classifiers[name].revision, 0) > 0

    def get(self, name: str) -> Classifier:
        """The folder's own revision. Raises UnknownClassifierError."""
        try:
            return self.classifiers[name]
        except KeyError:
            raise UnknownClassifierError(
                "There is no such classifier here; ListClassifiers names those there are.", {"classifier": name[:64]}
            ) from None

    def serving(self, name: str, conversation_key: str = "") -> Classifier:
        """The revision that answers about a conversation. Raises UnknownClassifierError, ClassifierWithheldError.

        Conversations with the same key get the same revision as long as the shares stay.
        """
        classifier = self.get(name)
        if (deployment := self.deployments.get(name)) is not None and deployment.shares:
            classifier = self.revision(name, pick(deployment.shares, f"{name} {conversation_key}"))
        if classifier is self.classifiers[name] and (classifier.flaw is not None or name in self.failures):
            raise ClassifierWithheldError(
                "This classifier is withheld and not asked; GetClassifier says why.",
                {"classifier": name},
            )
        return classifier

    def shadows(self, name: str) -> tuple[Classifier, ...]:
        """Revisions that are asked beside the one that answers."""
        deployment = self.deployments.get(name, Deployment())
        return tuple(each for each in self.revisions(name) if each.revision in deployment.shadows)

    def revisions(self, name: str) -> tuple[Classifier, ...]:
        """Every loaded revision, the folder's own first. Raises UnknownClassifierError."""
        return (self.get(name), *self.deployments.get(name, Deployment()).candidates)

    def revision(self, name: str, revision: str) -> Classifier:
        """Raises UnknownClassifierError, UnknownRevisionError."""
        found = next((each for each in self.revisions(name) if each.revision == revision), None)
        if found is None:
            raise UnknownRevisionError(
                "No such revision of the classifier is loaded; ListRevisions names those that are.",
                {"classifier": name, "revision": revision[:64]},
            )
        return found

    def shares(self, name: str) -> Mapping[str, int]:
        """Percent of the conversations by revision. Raises UnknownClassifierError."""
        own = {self.get(name).revision: 100}
        return self.deployments.get(name, Deployment()).shares or own

    @property
    def loaded(self) -> tuple[Classifier, ...]:
        """Every revision of every classifier."""
        return tuple(each for name in self.classifiers for each in self.revisions(name))

    @property
    def serving_names(self) -> tuple[str, ...]:
        """Names of the classifiers that may be asked."""
        withheld = self.withheld
        return tuple(name for name in self.classifiers if name not in withheld)

    def neighbours_of(self, classifier: Classifier) -> tuple[Classifier, ...]:
        """Some that answer and have passed their gate, to prove another revision beside: its own name's first."""
        proven = [self.classifiers[name] for name in self.serving_names if name not in self.failures]
        others = [each for each in proven if each is not classifier]
        return tuple(sorted(others, key=lambda each: each.name != classifier.name)[:NEIGHBOURS])

    def without(self, failures: Mapping[str, str]) -> Registry:
        """The same registry with exactly these classifiers having failed their gate."""
        return replace(self, failures=MappingProxyType(dict(failures)))

    def with_classifier(self, classifier: Classifier) -> Registry:
        """The same with this one in the place of its name; it has passed its gate and answers all of its traffic."""
        classifiers = {**self.classifiers, classifier.name: classifier}
        return Registry(
            MappingProxyType(dict(sorted(classifiers.items()))),
            _without(self.failures, classifier.name),
            _without(self.deployments, classifier.name),
        )

    def without_classifier(self, name: str) -> Registry:
        """The same without any revision of a name."""
        return Registry(
            _without(self.classifiers, name), _without(self.failures, name), _without(self.deployments, name)
        )

    def with_deployment(self, name: str, deployment: Deployment) -> Registry:
        """The same with other further revisions and traffic for a name."""
        others = _without(self.deployments, name)
        kept = {**others, name: deployment} if deployment != Deployment() else others
        return replace(self, deployments=MappingProxyType(kept))

    def select(self, names: Sequence[str]) -> tuple[Classifier, ...]:
        """The named classifiers in that order; all, by name, when `names` is empty. Raises UnknownClassifierError."""
        return tuple(map(self.get, names)) if names else tuple(self.classifiers.values())


def pick(shares: Mapping[str, int], key: str) -> str:
    """The revision that a key falls to: a hash spreads keys evenly over 100 places, which shares divide by
    revision, in whatever order they are given."""
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100
    for revision, percent in sorted(shares.items()):
        if place < percent:
            return revision
        place -= percent
    raise AssertionError("shares sum to 100")


def _without(mapping: Mapping[str, Value], name: str) -> Mapping[str, Value]:
    return MappingProxyType({key: value for key, value in mapping.items() if key != name})
