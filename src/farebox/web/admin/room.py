"""All pages of the operator: rooms like those of the site, each made of the kit and of what lets operators in."""

from starlette.routing import Route

from farebox.web.admin.announcements import AnnouncementRoom
from farebox.web.admin.audit import AuditLog
from farebox.web.admin.bills import BillRoom
from farebox.web.admin.customer import CustomerRoom
from farebox.web.admin.customers import Customers
from farebox.web.admin.guard import Admins
from farebox.web.admin.invitations import InvitationRoom
from farebox.web.admin.ledger import LedgerRoom
from farebox.web.admin.models import Models
from farebox.web.admin.money import Money
from farebox.web.admin.outbox import Outbox
from farebox.web.admin.settings import SettingsRoom
from farebox.web.admin.today import Today
from farebox.web.admin.topups import TopupsRoom
from farebox.web.admin.upstream_entry import UpstreamEntries
from farebox.web.admin.upstreams import Upstreams
from farebox.web.admin.viewing import Viewing
from farebox.web.kit import Kit


class Admin:
    """The rooms behind /admin."""

    def __init__(self, kit: Kit) -> None:
        admins = Admins(kit)
        self._rooms = (
            Today(kit, admins),
            Customers(kit, admins),
            Viewing(kit, admins),
            Money(kit, admins),
            CustomerRoom(kit, admins),
            TopupsRoom(kit, admins),
            LedgerRoom(kit, admins),
            BillRoom(kit, admins),
            AuditLog(kit, admins),
            Outbox(kit, admins),
            InvitationRoom(kit, admins),
            SettingsRoom(kit, admins),
            AnnouncementRoom(kit, admins),
            Models(kit, admins),
            Upstreams(kit, admins),
            UpstreamEntries(kit, admins),
        )

    def routes(self) -> list[Route]:
        return [route for room in self._rooms for route in room.routes()]
