// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IPaymentChannels} from "../../src/interfaces/IPaymentChannels.sol";
import {Keys} from "../utils/Keys.sol";
import {IOcto} from "../utils/Shipped.sol";

/// @title Plays payers, payees and thieves at random, and keeps books of its own
/// @dev The books count tokens that moved (balances before and after) and vouchers that were signed. They never ask the
/// contract what it believes.
contract ChannelsHandler is Keys {
    struct Book {
        uint256 paidIn;
        uint256 signed; // the highest voucher that its session key signed
        uint256 paidOut; // to the payee
        uint256 refunded; // to the payer
        bool closed;
    }

    uint256 private constant SALTS = 3;
    uint256 private constant PERIOD = 1 days;
    uint256 private constant MOST = 1_000 ether;
    address public constant SPONSOR = 0x2546BcD3c84621e976D8185a91A922aE77ECEc30;

    IOcto private immutable octo;
    IPaymentChannels private immutable channels;
    address[2] public payers = [vm.addr(11), vm.addr(12)];
    address[2] public payees = [vm.addr(21), vm.addr(22)];
    uint256[2] private sessions = [31, 32];
    IPaymentChannels.Terms[] private opened;
    mapping(bytes32 channelId => Book) private books;
    mapping(bytes32 channelId => IPaymentChannels.Voucher) private last;
    uint256 public gifts;
    uint256 public redeems;
    uint256 public closes;

    constructor(IOcto octo_, IPaymentChannels channels_) {
        octo = octo_;
        channels = channels_;
        address[3] memory funders = [payers[0], payers[1], SPONSOR];
        for (uint256 i = 0; i < funders.length; i++) {
            vm.prank(funders[i]);
            octo_.approve(address(channels_), type(uint256).max);
        }
    }

    // ---- honest moves --------------------------------------------------------------------------------------------

    function open(uint256 who, uint256 amount) external {
        IPaymentChannels.Terms memory terms = IPaymentChannels.Terms(
            payers[who % 2], payees[(who / 2) % 2], vm.addr(sessions[(who / 4) % 2]), bytes32((who / 8) % SALTS)
        );
        bytes32 id = channels.channelIdOf(terms);
        if (books[id].paidIn != 0) return;
        amount = bound(amount, 1, MOST);
        books[id].paidIn = amount;
        opened.push(terms);
        vm.prank(terms.payer);
        channels.open(terms.payee, terms.sessionKey, terms.salt, amount);
    }

    function topUp(uint256 which, uint256 amount, bool bySponsor) external {
        if (opened.length == 0) return;
        (IPaymentChannels.Terms memory terms, bytes32 id) = pick(which);
        if (books[id].closed || channels.channel(id).closesAt != 0) return;
        amount = bound(amount, 1, MOST);
        books[id].paidIn += amount;
        vm.prank(bySponsor ? SPONSOR : terms.payer);
        channels.topUp(id, amount);
    }

    function redeem(uint256 which, uint256 amount, address by) external {
        if (opened.length == 0) return;
        (IPaymentChannels.Terms memory terms, bytes32 id) = pick(which);
        Book storage book = books[id];
        if (book.closed || book.paidOut == book.paidIn) return;
        IPaymentChannels.Voucher memory voucher = sign(terms, bound(amount, book.paidOut + 1, book.paidIn));
        uint256 before = octo.balanceOf(terms.payee);
        if (by == address(0)) by = address(1);
        vm.prank(by);
        channels.redeem(terms.payee, voucher);
        book.paidOut += octo.balanceOf(terms.payee) - before;
        redeems++;
    }

    /// @dev Three channels of one payee with any amounts, one of them twice: stale, overdrawn and good ones together.
    function redeemBatch(uint256 which, uint256[3] calldata amounts) external {
        if (opened.length == 0) return;
        address payee = payees[which % 2];
        IPaymentChannels.Voucher[] memory vouchers = new IPaymentChannels.Voucher[](4);
        bytes32[4] memory ids;
        uint256[4] memory before;
        for (uint256 i = 0; i < 4; i++) {
            (IPaymentChannels.Terms memory terms, bytes32 id) = pickOf(payee, which / 2 + i % 3);
            if (terms.payee != payee) return;
            vouchers[i] = sign(terms, amounts[i % 3] % (MOST + MOST / 4));
            ids[i] = id;
            before[i] = channels.channel(id).redeemed;
        }
        uint256 held = octo.balanceOf(payee);
        channels.redeemBatch(payee, vouchers);
        // One transfer pays for all: split it by what each slot moved, and hold the sum against the tokens.
        uint256 sum;
        for (uint256 i = 0; i < 4; i++) {
            uint256 moved = channels.channel(ids[i]).redeemed - before[i];
            for (uint256 j = 0; j < i; j++) {
                if (ids[j] == ids[i]) moved = 0;
            }
            books[ids[i]].paidOut += moved;
            sum += moved;
        }
        vm.assertEq(octo.balanceOf(payee) - held, sum, "a batch pays what its slots say");
        if (sum != 0) redeems++;
    }

    function requestClose(uint256 which) external {
        if (opened.length == 0) return;
        (IPaymentChannels.Terms memory terms, bytes32 id) = pick(which);
        if (books[id].closed || channels.channel(id).closesAt != 0) return;
        vm.prank(terms.payer);
        channels.requestClose(terms.payee, terms.sessionKey, terms.salt);
    }

    function closeByPayee(uint256 which) external {
        if (opened.length == 0 || which % 4 != 0) return; // else all channels close too soon to be of interest
        (IPaymentChannels.Terms memory terms, bytes32 id) = pick(which / 4);
        if (!books[id].closed) close(terms, id, terms.payee);
    }

    function closeByAnyone(uint256 which, address by) external {
        if (opened.length == 0) return;
        (IPaymentChannels.Terms memory terms, bytes32 id) = pick(which);
        uint64 closesAt = channels.channel(id).closesAt;
        if (books[id].closed || closesAt == 0) return;
        if (vm.getBlockTimestamp() < closesAt) vm.warp(closesAt);
        close(terms, id, by == address(0) ? address(1) : by);
    }

    function gift(uint256 amount) external {
        amount = bound(amount, 1, 1 ether);
        gifts += amount;
        octo.transfer(address(channels), amount);
    }

    function wait_(uint256 seconds_) external {
        vm.warp(vm.getBlockTimestamp() + bound(seconds_, 1, 2 * PERIOD));
    }

    // ---- dishonest ones: what succeeds shows in the books ----------------------------------------------------------

    /// @dev A voucher that the session key never signed: another key, a changed amount, or another channel's.
    function forge(uint256 which, uint256 amount, uint256 how) external {
        if (opened.length == 0) return;
        (IPaymentChannels.Terms memory terms, bytes32 id) = pick(which);
        IPaymentChannels.Voucher memory voucher = last[id];
        if (how % 3 == 0 || voucher.payer == address(0)) voucher = signWith(666, terms, bound(amount, 1, MOST));
        else if (how % 3 == 1) voucher.cumulativeAmount += bound(amount, 1, MOST);
        else voucher.salt = bytes32((uint256(voucher.salt) + 1) % SALTS);
        steal(terms, voucher);
    }

    function replay(uint256 which) external {
        if (opened.length == 0) return;
        (IPaymentChannels.Terms memory terms, bytes32 id) = pick(which);
        if (last[id].payer != address(0)) steal(terms, last[id]);
    }

    function stealByClosing(uint256 which, address by) external {
        if (opened.length == 0) return;
        (IPaymentChannels.Terms memory terms, bytes32 id) = pick(which);
        if (by == terms.payee) return;
        uint256 before = octo.balanceOf(terms.payer);
        vm.prank(by);
        try channels.close(terms) {
            books[id].closed = true;
            closes++;
        } catch {}
        books[id].refunded += octo.balanceOf(terms.payer) - before;
    }

    function fundLate(uint256 which, uint256 amount) external {
        if (opened.length == 0) return;
        (IPaymentChannels.Terms memory terms, bytes32 id) = pick(which);
        uint256 before = octo.balanceOf(terms.payer);
        if (channels.channel(id).closesAt == 0) return;
        vm.prank(terms.payer);
        try channels.topUp(id, bound(amount, 1, MOST)) {} catch {}
        books[id].paidIn += before - octo.balanceOf(terms.payer);
        vm.assertEq(octo.balanceOf(terms.payer), before, "a closing channel takes no deposit");
    }

    // ---- the books -----------------------------------------------------------------------------------------------

    function count() external view returns (uint256) {
        return opened.length;
    }

    function channelAt(uint256 i)
        external
        view
        returns (IPaymentChannels.Terms memory terms, bytes32 id, Book memory book)
    {
        (terms, id) = pick(i);
        book = books[id];
    }

    function pick(uint256 which) private view returns (IPaymentChannels.Terms memory terms, bytes32 id) {
        terms = opened[which % opened.length];
        id = channels.channelIdOf(terms);
    }

    function pickOf(address payee, uint256 which)
        private
        view
        returns (IPaymentChannels.Terms memory terms, bytes32 id)
    {
        for (uint256 i = 0; i < opened.length; i++) {
            (terms, id) = pick(which + i);
            if (terms.payee == payee) return (terms, id);
        }
    }

    function close(IPaymentChannels.Terms memory terms, bytes32 id, address by) private {
        uint256 before = octo.balanceOf(terms.payer);
        vm.prank(by);
        channels.close(terms);
        books[id].refunded += octo.balanceOf(terms.payer) - before;
        books[id].closed = true;
        closes++;
    }

    function steal(IPaymentChannels.Terms memory terms, IPaymentChannels.Voucher memory voucher) private {
        IPaymentChannels.Terms memory target =
            IPaymentChannels.Terms(voucher.payer, terms.payee, voucher.sessionKey, voucher.salt);
        uint256 before = octo.balanceOf(terms.payee);
        try channels.redeem(terms.payee, voucher) {} catch {}
        books[channels.channelIdOf(target)].paidOut += octo.balanceOf(terms.payee) - before;
    }

    function sign(IPaymentChannels.Terms memory terms, uint256 amount)
        private
        returns (IPaymentChannels.Voucher memory voucher)
    {
        uint256 key = terms.sessionKey == vm.addr(sessions[0]) ? sessions[0] : sessions[1];
        voucher = signWith(key, terms, amount);
        bytes32 id = channels.channelIdOf(terms);
        if (amount > books[id].signed) books[id].signed = amount;
        last[id] = voucher;
    }

    function signWith(uint256 key, IPaymentChannels.Terms memory terms, uint256 amount)
        private
        view
        returns (IPaymentChannels.Voucher memory)
    {
        bytes32 root = keccak256(abi.encode(amount));
        (bytes32 r, bytes32 vs) = compact(key, channels.voucherDigest(channels.channelIdOf(terms), amount, root));
        return IPaymentChannels.Voucher(terms.payer, terms.sessionKey, terms.salt, amount, root, r, vs);
    }
}
