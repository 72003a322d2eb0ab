"""What the mails say, and the flaky service that writes one half of it."""

import asyncio
import hashlib
from dataclasses import dataclass

from _onboarding.signups import Language, Plan, SignUp

ANSWER_S = 0.4  # how long the service takes for a text
FAILING = 4  # one attempt in so many fails


class WriterBusyError(Exception):
    """The writing service is overloaded. Trying again later helps."""


@dataclass(frozen=True)
class Phrases:
    """Everything we know how to say in one language."""

    welcome_subject: str
    welcome: str
    tips_subject: str
    tips_opening: str
    tips: dict[Plan, str]
    plain_tips: str
    closing: str


async def write_tips(signup: SignUp, seed: str) -> str:
    """Have the writing service think of something for ``signup``.

    The service is a stand-in on this machine: it takes its time, and refuses one attempt in four,
    always the same ones for the same ``seed``.

    Raises:
        WriterBusyError: This attempt was refused.
    """
    await asyncio.sleep(ANSWER_S)
    if hashlib.sha256(seed.encode()).digest()[0] % FAILING == 0:
        raise WriterBusyError("the writing service is overloaded")
    return PHRASES[signup.language].tips[signup.plan]


def plain_tips(signup: SignUp) -> str:
    """Return what can be said without the service."""
    return PHRASES[signup.language].plain_tips


def welcome_mail(signup: SignUp) -> tuple[str, str]:
    """Return subject and body of the first mail."""
    phrases = PHRASES[signup.language]
    welcome = phrases.welcome.format(name=signup.name, plan=signup.plan)
    return phrases.welcome_subject.format(name=signup.name), f"{welcome}\n\n{phrases.closing}\n"


def follow_up_mail(signup: SignUp, tips: str) -> tuple[str, str]:
    """Return subject and body of the mail a day later."""
    phrases = PHRASES[signup.language]
    opening = phrases.tips_opening.format(name=signup.name, since=signup.signed_up.isoformat())
    return phrases.tips_subject.format(
        plan=signup.plan
    ), f"{opening}\n\n{tips}\n\n{phrases.closing}\n"


PHRASES = {
    Language.EN: Phrases(
        welcome_subject="Welcome, {name}!",
        welcome="Hello {name},\n\nyour {plan} account is ready. Have a look around; tomorrow we\n"
        "will write once more, with something that fits you.",
        tips_subject="Getting more out of your {plan} plan",
        tips_opening="Hello {name},\n\nyou have been with us since {since}. Time for an idea:",
        tips={
            Plan.FREE: "Invite a friend: both of you get a second project for nothing.",
            Plan.PRO: "Try the templates: most people save an hour with the first one.",
            Plan.TEAM: "Set up roles first: then everybody sees what is theirs, and only that.",
        },
        plain_tips="Answer this mail and say what you would like to do: a person will read it.",
        closing="Yours,\nthe onboarding team",
    ),
    Language.DE: Phrases(
        welcome_subject="Willkommen, {name}!",
        welcome="Guten Tag {name},\n\nIhr Konto ({plan}) ist bereit. Sehen Sie sich um; morgen\n"
        "schreiben wir noch einmal, mit etwas, das zu Ihnen passt.",
        tips_subject="Mehr aus Ihrem Tarif ({plan}) machen",
        tips_opening="Guten Tag {name},\n\nseit {since} sind Sie bei uns. Zeit für eine Idee:",
        tips={
            Plan.FREE: "Laden Sie jemanden ein: Sie beide bekommen ein zweites Projekt umsonst.",
            Plan.PRO: "Probieren Sie die Vorlagen: die erste spart meist schon eine Stunde.",
            Plan.TEAM: "Vergeben Sie zuerst Rollen: dann sieht jeder das Seine, und nur das.",
        },
        plain_tips="Antworten Sie einfach und sagen Sie, was Sie vorhaben: ein Mensch liest es.",
        closing="Herzliche Grüße\nIhr Onboarding-Team",
    ),
    Language.FR: Phrases(
        welcome_subject="Bienvenue, {name} !",
        welcome="Bonjour {name},\n\nvotre compte {plan} est prêt. Faites-en le tour ; demain nous\n"
        "vous écrirons encore une fois, avec une idée faite pour vous.",
        tips_subject="Tirer davantage de votre formule {plan}",
        tips_opening="Bonjour {name},\n\nvous êtes avec nous depuis le {since}. Voici une idée :",
        tips={
            Plan.FREE: "Invitez quelqu'un : vous aurez chacun un second projet gratuit.",
            Plan.PRO: "Essayez les modèles : le premier fait souvent gagner une heure.",
            Plan.TEAM: "Commencez par les rôles : chacun verra ce qui le concerne, sans plus.",
        },
        plain_tips="Répondez-nous et dites ce que vous voulez faire : quelqu'un vous lira.",
        closing="Bien à vous,\nl'équipe d'accueil",
    ),
    Language.ES: Phrases(
        welcome_subject="¡Te damos la bienvenida, {name}!",
        welcome="Hola, {name}:\n\ntu cuenta {plan} está lista. Echa un vistazo; mañana te\n"
        "escribiremos otra vez, con algo pensado para ti.",
        tips_subject="Cómo sacar más partido a tu plan {plan}",
        tips_opening="Hola, {name}:\n\nestás con nosotros desde el {since}. Ahí va una idea:",
        tips={
            Plan.FREE: "Invita a alguien: cada uno tendrá un segundo proyecto gratis.",
            Plan.PRO: "Prueba las plantillas: la primera suele ahorrar una hora.",
            Plan.TEAM: "Empieza por los roles: cada cual verá lo suyo, y nada más.",
        },
        plain_tips="Responde a este correo y cuenta qué quieres hacer: lo leerá una persona.",
        closing="Un saludo,\nel equipo de bienvenida",
    ),
}
